"""Trained models, kept under the user's cache folder by what they were made of."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

Model = TypeVar("Model")


def folder() -> Path:
    """Give ``$QB_CACHE``, or ``$XDG_CACHE_HOME/qb-cluster``, or ``~/.cache/qb-cluster``."""
    if own := os.environ.get("QB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qb-cluster"


def trained(
    ingredients: Sequence[bytes],
    ending: str,
    train: Callable[[], bytes],
    read: Callable[[bytes], Model | None],
) -> Model:
    """Give a trained model, training only where no process of this user has done so yet.

    Args:
        ingredients: everything that decides the weights: data, code, hyperparameters, versions.
        ending: of the file's name, without a dot.
        train: gives the file's content; called by one process at a time.
        read: makes the model of a file's content; ``None`` for a damaged one, which is then
            trained anew.

    Raises:
        OSError: the cache folder cannot be written.
        ValueError: what ``train`` gave cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in ingredients:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    path = folder() / "models" / f"{digest.hexdigest()}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        model = read(path.read_bytes()) if path.exists() else None
        if model is None:
            data = train()
            # Aside and renamed, so that a killed process leaves no half file under the name.
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            Path(file.name).replace(path)
            model = read(data)
    if model is None:
        raise ValueError(f"the model that was just trained cannot be read ({path})")
    return model
