"""Artifacts that the driver has sent, as files in the agent's folder."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from qb_cluster.boards.agent.refusal import Refusal

_SPARE_BYTES = 64 << 10


def free_memory_bytes() -> int | None:
    """Give the memory that a program could have now; ``None`` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def free_disk_bytes(folder: Path) -> int:
    """Give the bytes that may be written to the file system of a folder."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class ArtifactFiles:
    """Files by digest; those not used for longest go when the disk is full.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}  # least recently used first

    def has(self, digest: str, size: int) -> bool:
        """Tell whether an artifact is here already, else make room for it.

        Raises:
            Refusal: ``no_memory`` or ``no_space``: there is no room.
        """
        if digest in self._sizes:
            self._sizes[digest] = self._sizes.pop(digest)
            return True
        self._make_room(size)
        return False

    def put(self, digest: str, data: bytes) -> None:
        """Keep an artifact.

        Raises:
            Refusal: ``damaged``: the bytes are others than the digest says; or ``no_space``.
        """
        if hashlib.blake2b(data, digest_size=16).hexdigest() != digest:
            raise Refusal("damaged", "the artifact was damaged on its way here; send it again")
        path = self._folder / digest
        try:
            path.write_bytes(data)
        except OSError as error:
            path.unlink()
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise self._no_space(len(data)) from error
            raise
        self._sizes[digest] = len(data)

    def read(self, digest: str) -> bytes:
        """Give an artifact's bytes.

        Raises:
            Refusal: ``damaged``: it is not here.
        """
        if digest not in self._sizes:
            raise Refusal("damaged", f"artifact {digest} is not on the board any more; send it")
        self._sizes[digest] = self._sizes.pop(digest)
        return (self._folder / digest).read_bytes()

    def _make_room(self, size: int) -> None:
        memory = free_memory_bytes()
        if memory is not None and size > memory:
            raise Refusal(
                "no_memory",
                f"the artifact has {size:,} bytes and {memory:,} bytes of memory are free; "
                "quantize to fewer bits, or take a board with more memory",
            )
        while free_disk_bytes(self._folder) < size + _SPARE_BYTES:
            if not self._sizes:
                raise self._no_space(size)
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            (self._folder / oldest).unlink()

    def _no_space(self, size: int) -> Refusal:
        return Refusal(
            "no_space",
            f"the artifact has {size:,} bytes and {self._folder.parent} has "
            f"{free_disk_bytes(self._folder):,} bytes free; free some, or name a folder on "
            "another disk for this board",
        )
