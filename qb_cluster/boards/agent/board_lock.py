"""The lock of a board: one sweep at a time, whoever runs it.

What is locked is a file that says who has it. A holder that is killed leaves it behind, and the
next one may be another user, who can lock it but not write it: so its text may be of somebody who
is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from qb_cluster.boards.agent.private_folder import AGENT
from qb_cluster.boards.agent.refusal import Refusal

_PATIENCE_S = 3.0
_MOST_TEXT = 1 << 16
# Never through a link that somebody put there, nor waiting for the other end of a pipe.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK


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
            ``None`` when the lock is ours, else what its holder says of itself, or nothing.

        Raises:
            Refusal: ``setup``: the file is a link, or cannot be opened or locked.
        """
        deadline = time.monotonic() + _PATIENCE_S
        asked: int | None = None
        while self._descriptor is None and (holder := self._try_to_lock()) is not None:
            if holder.get("owner") != owner:
                return holder
            pid = holder["pid"]
            is_late = time.monotonic() > deadline
            if pid != asked or is_late:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
                asked = pid
            if time.monotonic() > deadline + _PATIENCE_S:
                return holder
            time.sleep(0.05)
        text = json.dumps({"owner": owner, "who": who, "since": since, "pid": os.getpid()})
        assert self._descriptor is not None
        # The lock holds without the text: in another user's file, or on a full disk.
        with contextlib.suppress(OSError):
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

    def _try_to_lock(self) -> dict[str, Any] | None:
        """Lock the file; ``None`` when that is done, else what its holder says of itself."""
        try:
            descriptor = self._open()
        except FileNotFoundError:  # another user's that was just removed
            return {}
        except OSError as error:
            raise self._refusal(error) from error
        try:
            if _is_locked(descriptor):
                return _holder(descriptor)
            # A holder that ends removes the file: what is locked may be a file without a name.
            if not _is_same(descriptor, self._path):
                return {}
            self._descriptor = descriptor
        except OSError as error:
            raise self._refusal(error) from error
        finally:
            if self._descriptor is None:
                os.close(descriptor)
        return None

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o644)
        except PermissionError:
            # Another user's: it can be locked all the same, and others see that.
            return os.open(self._path, os.O_RDONLY | _FLAGS)

    def _refusal(self, error: OSError) -> Refusal:
        # Where links may not be followed in such a folder at all, the error names no link.
        is_link = error.errno == errno.ELOOP or self._path.is_symlink()
        why = "it is a link, which is not followed" if is_link else error.strerror
        return Refusal(
            "setup",
            f"{self._path} cannot be locked ({why}); remove it, or name another folder for this "
            "board",
        )


def _is_locked(descriptor: int) -> bool:
    """Lock an open file; tell whether another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> dict[str, Any]:
    """Give what the holder wrote; nothing where there is no such text, or who wrote it is gone."""
    try:
        holder = json.loads(os.pread(descriptor, _MOST_TEXT, 0))
    except (OSError, ValueError):  # just taken, or no file of ours
        return {}
    if not isinstance(holder, dict) or not isinstance(holder.get("pid"), int):
        return {}
    return holder if _is_agent(holder["pid"]) else {}


def _is_agent(pid: int) -> bool:
    """Tell whether a process may be an agent: after a while its number is another process's."""
    if pid <= 0:  # would be a group
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is another user's
        pass
    try:
        return AGENT.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # not to be seen here
        return True
