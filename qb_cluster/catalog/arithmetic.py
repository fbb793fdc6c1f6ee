"""A digest of the arithmetic that is ours: who edits a quantizer gets new numbers, not old rows."""

from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

ROOMS: Final = ("contracts", "evaluation", "quantization", "worker")
"""Folders of ``qb_cluster`` whose code decides what a cell's numbers are."""


@cache
def arithmetic_digest() -> str:
    """Digest the arithmetic of this process, as it was when this was first asked for.

    Returns:
        32 hex digits.
    """
    return digest_of(files("qb_cluster"))


def digest_of(package: Traversable) -> str:
    """Digest the source files in ``ROOMS`` by name and bytes; comments count too.

    Args:
        package: a copy of ``qb_cluster``, in a folder or in a zip.

    Returns:
        32 hex digits, the same wherever the copy is and whenever it was made.
    """
    digest = blake2b(digest_size=16)
    for room in ROOMS:
        for name, source in _sources(package / room, room):
            digest.update(f"{name} {len(source)}\n".encode())
            digest.update(source)
    return digest.hexdigest()


def _sources(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{path}/{entry.name}"
        if entry.is_dir():
            yield from _sources(entry, name)
        elif name.endswith(".py"):
            yield name, entry.read_bytes()
