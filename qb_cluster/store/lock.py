"""One driver per run folder."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from qb_cluster.errors import RunFolderError
from qb_cluster.store.parts import replace_file

LOCK: Final = ".lock"
HOLDER: Final = ".lock-holder.json"
_HOLDER_ASIDE: Final = f"{HOLDER}.new"
LOCK_FILES: Final = (LOCK, HOLDER, _HOLDER_ASIDE)


def lock(run: Path) -> FileLock:
    """Take the run folder's lock; the operating system lets go of it when the process ends.

    Raises:
        RunFolderError: another driver has it.
        OSError: the folder cannot be written.
    """
    # thread_local: whoever closes the run folder, from whichever thread, lets go of the lock.
    taken = FileLock(run / LOCK, thread_local=False)
    try:
        taken.acquire(timeout=0)
    except Timeout as timeout:
        raise RunFolderError(
            f"{run} is in use by another driver ({_holder(run)}); wait for it to end, stop it, "
            "or choose another --out"
        ) from timeout
    try:
        note = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        replace_file(run / HOLDER, json.dumps(note).encode(), aside=run / _HOLDER_ASIDE)
    except BaseException:
        taken.release()
        raise
    return taken


def _holder(run: Path) -> str:
    try:
        note: dict[str, Any] = json.loads((run / HOLDER).read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']}, since {note['since']}"
    except (OSError, ValueError, KeyError):
        return "which has not said yet who it is"  # between taking the lock and its note
