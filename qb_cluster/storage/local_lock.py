"""One driver per folder of this machine."""

import json
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from qb_cluster.errors import RunFolderError

if TYPE_CHECKING:
    from qb_cluster.storage.local_folder import LocalFolder

_LOCK: Final = ".lock"
_HOLDER: Final = ".lock-holder.json"
FILES: Final = (_LOCK, _HOLDER)


class LocalLock:
    """A lock of the operating system, which lets go of it when the process ends."""

    def __init__(self, folder: "LocalFolder", held: FileLock) -> None:
        self._folder = folder
        self._held = held

    def check(self) -> None:
        """Do nothing: it is held as long as the process lives."""

    def release(self) -> None:
        """Let go of the folder."""
        if self._held.is_locked:
            with suppress(OSError):
                self._folder.delete(_HOLDER)
            self._held.release()


def take(folder: "LocalFolder") -> LocalLock:
    """Take a folder's lock.

    Raises:
        RunFolderError: another driver has it.
        OSError: the folder cannot be written.
    """
    # thread_local: whoever closes the run folder, from whichever thread, lets go of the lock.
    held = FileLock(folder.path / _LOCK, thread_local=False)
    try:
        held.acquire(timeout=0)
    except Timeout as timeout:
        raise RunFolderError(in_use(str(folder), _holder(folder))) from timeout
    try:
        folder.replace(_HOLDER, note())
    except BaseException:
        held.release()
        raise
    return LocalLock(folder, held)


def note() -> bytes:
    """Say who this process is."""
    return json.dumps(
        {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    ).encode()


def who(written: bytes) -> str:
    """Put a note into words.

    Raises:
        ValueError, KeyError: it is no note.
    """
    said = json.loads(written)
    return f"process {said['pid']} on {said['host']}, since {said['since']}"


def in_use(place: str, holder: str) -> str:
    """Say that a folder is held, and what to do."""
    return (
        f"{place} is in use by another driver ({holder}); wait for it to end, stop it, or choose "
        "another --out"
    )


def _holder(folder: "LocalFolder") -> str:
    try:
        return who(folder.read(_HOLDER))
    except (OSError, ValueError, KeyError):
        return "which has not said yet who it is"  # between taking the lock and its note
