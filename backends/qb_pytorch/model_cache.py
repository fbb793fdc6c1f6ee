"""Trained weights, kept under the user's cache folder by what they were made of."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock

State = dict[str, torch.Tensor]


def folder() -> Path:
    """Give ``$QB_CACHE``, or ``$XDG_CACHE_HOME/qb-cluster``, or ``~/.cache/qb-cluster``."""
    if own := os.environ.get("QB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qb-cluster"


def trained(ingredients: Sequence[bytes], train: Callable[[], State]) -> State:
    """Give a trained state, training only where no process of this user has done so yet.

    Args:
        ingredients: everything that decides the weights: data, code, hyperparameters, versions.
        train: gives the ``state_dict``; called by one process at a time.

    Raises:
        OSError: the cache folder cannot be written.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (*ingredients, torch.__version__.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    path = folder() / "models" / f"{digest.hexdigest()}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        state = _read(path)
        if state is None:
            state = train()
            _write(path, state)
    return state


def _read(path: Path) -> State | None:
    """Read a state; ``None`` where there is none, or the file is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        state: State = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # the reader has no error of its own for damaged files, but five others
        return None
    return state


def _write(path: Path, state: State) -> None:
    """Write aside and rename, so that a killed process leaves no half file under the name."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        torch.save(state, file)
    Path(file.name).replace(path)
