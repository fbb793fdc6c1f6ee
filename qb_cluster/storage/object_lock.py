"""One driver per folder of an object store.

``pyarrow.fs`` has no put that fails where something is, so a lock is a file of its own in
``.lock/``: whoever finds another's there, after having put its own, takes its own away again. Of
two who come at once, each may refuse the other; never do both go on, since stores list what has
been put. The holder rewrites its file again and again. Whether it is alive is told from the store's
own times, and from whether the file changes, so the clocks of machines need not agree.
"""

import random
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from qb_cluster.errors import RunFolderError
from qb_cluster.storage.folder import StorageError
from qb_cluster.storage.local_lock import in_use, note, who

if TYPE_CHECKING:
    from qb_cluster.storage.object_folder import ObjectFolder

LOCKS: Final = ".lock"
BEAT_S: Final = 10.0
STALE_S: Final = 60.0
_RESOLUTION_S: Final = 1.0  # of the times of S3
_RETRY_S: Final = 0.1


class ObjectLock:
    """A file of the store that is rewritten as long as its holder lives.

    Args:
        folder: what is held.
        beat_s: seconds between two rewritings.
        stale_s: seconds after which one who has not rewritten its own has lost it.
    """

    def __init__(self, folder: "ObjectFolder", beat_s: float, stale_s: float) -> None:
        self._folder = folder
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._note = note()
        self._beats = 0
        self._beaten_at = time.monotonic()
        self._is_lost = False
        self._stop = threading.Event()
        self._name = f"{LOCKS}/{uuid.uuid4().hex}"
        self._thread = threading.Thread(target=self._keep, name="qb-lock", daemon=True)

    @classmethod
    def take(cls, folder: "ObjectFolder", beat_s: float = BEAT_S, stale_s: float = STALE_S) -> Self:
        """Take a folder's lock; waits until a dead holder can be told from a live one.

        Raises:
            RunFolderError: another driver has it.
            OSError: the store cannot be used.
        """
        while True:
            lock = cls(folder, beat_s, stale_s)
            lock._beat(time.monotonic())
            try:
                others = lock._others()
                if not others:
                    lock._thread.start()
                    return lock
            except BaseException:
                lock._drop()
                raise
            lock._drop()
            _await_the_end(folder, others, beat_s, stale_s)

    def check(self) -> None:
        """Make sure that no other driver can have taken it.

        Raises:
            RunFolderError: it was not rewritten for too long, or another driver took it away.
        """
        if self._is_lost or time.monotonic() - self._beaten_at > self._stale_s:
            raise RunFolderError(
                f"{self._folder}: the store could not be reached for {self._stale_s:g} s, and "
                "another driver may have this run by now; run the same command again"
            )

    def release(self) -> None:
        """Let go of the folder."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._drop()

    def _keep(self) -> None:
        while not self._stop.wait(self._beat_s):
            with suppress(OSError):  # the next beat may get through
                began = time.monotonic()
                is_there = self._folder.size(self._name) is not None
                if is_there:
                    self._beat(began)
                # Whoever slept in between may have put back what was taken away meanwhile.
                if not is_there or time.monotonic() - began > self._stale_s:
                    self._is_lost = True
                    return

    def _beat(self, began: float) -> None:
        self._beats += 1
        self._folder.replace(self._name, b"%b\n%d" % (self._note, self._beats))
        self._beaten_at = began

    def _others(self) -> list[str]:
        """Find the locks of others, and delete those whose holders must have died long ago."""
        written = {f"{LOCKS}/{name}": at for name, at in self._folder.written_at(LOCKS).items()}
        now = written.pop(self._name, None)
        if now is None:
            raise StorageError(f"{self._name} was put, but is not there")
        for name, at in list(written.items()):
            if now - at > self._stale_s + _RESOLUTION_S:
                self._folder.delete(name)
                del written[name]
        return list(written)

    def _drop(self) -> None:
        with suppress(OSError):
            self._folder.delete(self._name)


def _await_the_end(folder: "ObjectFolder", names: list[str], beat_s: float, stale_s: float) -> None:
    """Wait for locks to go, or to be stale; those are deleted.

    Raises:
        RunFolderError: the holder of one is alive.
    """
    seen = {name: _read(folder, name) for name in names}
    began = time.monotonic()
    while time.monotonic() - began <= stale_s and any(seen.values()):
        time.sleep(min(beat_s, stale_s) * random.uniform(0.3, 0.7))  # noqa: S311 - not in step
        for name, before in seen.items():
            now = _read(folder, name)
            if before is not None and now not in {before, None}:
                raise RunFolderError(in_use(str(folder), _holder(now)))
            seen[name] = now
    for name, left in seen.items():
        if left is not None:
            folder.delete(name)


def _read(folder: "ObjectFolder", name: str) -> bytes | None:
    """Read a lock; again where its holder rewrites or deletes it in the middle of the reading."""
    for is_last in (False, False, True):
        try:
            return folder.read(name)
        except FileNotFoundError:
            return None
        except StorageError:
            if is_last:
                raise
            time.sleep(_RETRY_S)
    return None


def _holder(written: bytes | None) -> str:
    try:
        return who((written or b"").partition(b"\n")[0])
    except (ValueError, KeyError):
        return "which does not say who it is"
