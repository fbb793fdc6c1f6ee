"""Artifacts that other sweeps and runs of this user have made, by all that decides them.

One file each under the user's cache folder: a line of JSON, then the artifact's bytes. The cache
is a convenience: what cannot be read or written is made anew, and no cell fails of it.
"""

import json
import logging
import os
import tempfile
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Final

from qb_cluster.catalog import model_cache
from qb_cluster.contracts import Artifact, ArtifactFacts

LIMIT_BYTES: Final = 10 * 2**30
WORTH_KEEPING_NS: Final = 20_000_000
"""What is made faster than this is made again: writing and looking after a file is not free."""
_FULL: Final = 0.9  # how full the folder is after a clearance, of the limit
_WRITERS: Final = 8  # others write too: nobody takes all the room that is left for himself
_logger = logging.getLogger(__name__)


class ArtifactCache:
    """A folder of artifacts, the least recently used of which go when it grows too large.

    Any number of processes may use it at once.

    Args:
        folder: made when first written to.
        limit_bytes: what the folder may take; 0 turns the cache off.
        worth_keeping_ns: artifacts that took at least so long to make are kept.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, worth_keeping_ns: int = WORTH_KEEPING_NS
    ) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._worth_keeping = worth_keeping_ns
        self._left = 0  # bytes that may be written before the folder is looked at again

    @classmethod
    def of_user(cls) -> "ArtifactCache":
        """Give the user's own, with ``$QB_CACHE_BYTES`` as its limit, or 10 GiB."""
        limit = os.environ.get("QB_CACHE_BYTES", "")
        return cls(
            model_cache.folder() / "artifacts", int(limit) if limit.isdecimal() else LIMIT_BYTES
        )

    def get(self, key: str) -> tuple[Artifact, int] | None:
        """Give an artifact, and the nanoseconds that making it took; ``None`` if it is not kept.

        Args:
            key: hash of all that decides the artifact.
        """
        if not self._limit:
            return None
        path = self._folder / key
        try:
            with path.open("rb") as file:
                kept, data = json.loads(file.readline()), file.read()
            if kept["digest"] != blake2b(data, digest_size=16).hexdigest():
                return None  # damaged
            artifact = Artifact(data, kept["format"], ArtifactFacts.from_plain(kept["facts"]))
            os.utime(path)  # used just now
            return artifact, int(kept["prepare_ns"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, key: str, artifact: Artifact, prepare_ns: int) -> None:
        """Keep an artifact that took ``prepare_ns`` to make, if that is worth it."""
        if prepare_ns < self._worth_keeping or len(artifact.data) > self._limit:
            return
        header = {
            "digest": blake2b(artifact.data, digest_size=16).hexdigest(),
            "format": artifact.format,
            "facts": asdict(artifact.facts),
            "prepare_ns": prepare_ns,
        }
        try:
            self._write(self._folder / key, json.dumps(header).encode() + b"\n", artifact.data)
        except OSError as error:
            _logger.warning("artifacts are not cached: %s: %s", self._folder, error.strerror)
            self._limit = 0

    def _write(self, path: Path, *parts: bytes) -> None:
        size = sum(map(len, parts))
        if size > self._left:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._left = self._cleared(size)
        self._left -= size
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".tmp-", delete=False) as file:
            try:
                file.writelines(parts)
                file.flush()
            except OSError:
                Path(file.name).unlink()
                raise
        Path(file.name).replace(path)

    def _cleared(self, size: int) -> int:
        """Make room for a file; give the bytes that may be written before the next look."""
        files = [(entry, entry.stat()) for entry in self._folder.iterdir()]
        total = size + sum(stat.st_size for _, stat in files)
        goal = self._limit if total <= self._limit else _FULL * self._limit
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime):
            if total <= goal:
                break
            path.unlink(missing_ok=True)  # another process may be at it too
            total -= stat.st_size
        return max(size, (self._limit - total) // _WRITERS)
