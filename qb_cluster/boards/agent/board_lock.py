"""The lock of a board: one sweep at a time, whoever runs it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 3.0


class BoardLock:
    """``quantbench.lock`` in the board's folder, locked by the system, so it dies with us.

    Args:
        folder: the board's folder, the same for all who share the board.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "quantbench.lock"
        self._descriptor: int | None = None

    def take(self, owner: str, who: str, since: str) -> dict[str, Any] | None:
        """Take the lock, from an older agent of the same owner too: that one is ended.

        Args:
            owner: the run; its next agent may replace its last.
            who: for others to read.
            since: the driver's time; a board's own clock is often wrong.

        Returns:
            ``None`` when the lock is ours, else what its holder says of itself.

        Raises:
            OSError: the file cannot be written.
        """
        deadline = time.monotonic() + _PATIENCE_S
        asked: int | None = None
        while self._descriptor is None and not self._try_to_lock():
            holder = self._holder()
            if holder.get("owner") != owner:
                return holder
            pid = int(holder["pid"])
            is_late = time.monotonic() > deadline
            if pid != asked or is_late:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
                asked = pid
            if time.monotonic() > deadline + _PATIENCE_S:
                return holder
            time.sleep(0.05)
        text = json.dumps({"owner": owner, "who": who, "since": since, "pid": os.getpid()})
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)
        return None

    def release(self) -> None:
        """Give the lock back and remove its file, if it is ours."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _try_to_lock(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            # Another user's: whether it is held can still be told.
            descriptor = os.open(self._path, os.O_RDONLY)
            if _is_locked(descriptor):
                return False
            raise
        # A holder that ends removes the file: what we have locked may be a file without a name.
        if not _is_locked(descriptor) and _is_same(descriptor, self._path):
            self._descriptor = descriptor
            return True
        os.close(descriptor)
        return False

    def _holder(self) -> dict[str, Any]:
        try:
            holder = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # just taken, or just given back
            holder = {}
        return holder if isinstance(holder, dict) else {}


def _is_locked(descriptor: int) -> bool:
    """Lock an open file; tell whether another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
