"""Trained models, kept under the user's cache folder by what they were made of."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from qb_cluster.errors import PlugInError
from qb_tensorflow import keras_file


def folder() -> Path:
    """Give ``$QB_CACHE``, or ``$XDG_CACHE_HOME/qb-cluster``, or ``~/.cache/qb-cluster``."""
    if own := os.environ.get("QB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qb-cluster"


def trained(ingredients: Sequence[bytes], train: Callable[[], bytes]) -> Any:
    """Give a trained Keras model, training only where no process of this user has done so yet.

    Args:
        ingredients: everything that decides the weights: data, code, hyperparameters, versions.
        train: gives a ``.keras`` archive; called by one process at a time.

    Raises:
        OSError: the cache folder cannot be written.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in ingredients:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    path = folder() / "models" / f"{digest.hexdigest()}.keras"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        model = _read(path)
        if model is None:
            data = train()
            # Aside and renamed, so that a killed process leaves no half file under the name.
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            Path(file.name).replace(path)
            model = keras_file.load(data)
    return model


def _read(path: Path) -> Any:
    """Read a model; ``None`` where there is none, or the file is damaged."""
    try:
        return keras_file.load(path.read_bytes())
    except (FileNotFoundError, PlugInError):
        return None
