"""A folder of this machine."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from qb_cluster.storage import local_lock
from qb_cluster.storage.folder import Lock

_ASIDE: Final = ".tmp"
_OLD, _NEW = ".old", ".new"


class LocalFolder:
    """Files on a local disk, or on one that is mounted.

    A file is written aside, synced and renamed to its place; then its folder is synced. What goes
    into a folder in here is written aside in ``.tmp``, into which no reader of a table looks.

    Args:
        path: the folder; made with the first file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def place(self) -> str:
        """Give the absolute path."""
        return str(self.path.absolute())

    def __str__(self) -> str:
        """Give the path as it was written."""
        return str(self.path)

    def folder(self, name: str) -> "LocalFolder":
        """Give a folder in this one."""
        return LocalFolder(self.path / name)

    def exists(self) -> bool:
        """Tell whether there is such a folder."""
        return self.path.is_dir()

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.path / name).read_bytes()

    def open(self, name: str) -> Any:
        """Open a file for random access."""
        import pyarrow as pa  # workers on small boards only read and replace

        return pa.OSFile(os.fspath(self.path / name))

    def size(self, name: str) -> int | None:
        """Give a file's size in bytes."""
        try:
            return (self.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str = "") -> list[str]:
        """List a folder, sorted; what an unfinished exchange has left is none of its files."""
        try:
            found = sorted(path.name for path in (self.path / folder).iterdir())
        except FileNotFoundError:
            if self._aside(folder + _OLD).exists():
                raise
            return []
        return found if folder else [name for name in found if not _is_own(name)]

    def put(self, name: str, data: bytes) -> None:
        """Write a new file.

        The caller holds the lock, so looking before renaming is as good as a rename that refuses
        to replace; that one does not exist on every file system.
        """
        if (self.path / name).exists():
            raise FileExistsError(
                errno.EEXIST, "there is such a file already", str(self.path / name)
            )
        self.replace(name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file so that readers see the old one or the whole new one."""
        place = self.path / name
        unique = uuid.uuid4().hex[:8]
        if "/" in name:
            aside = self._aside(f"{name.replace('/', '-')}-{unique}")
        else:
            aside = self.path / f".{name}-{unique}{_NEW}"
        for folder in (aside.parent, place.parent):
            self._make(folder)
        try:
            _write(aside, data)
            aside.replace(place)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync(place.parent)

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.path / name).unlink(missing_ok=True)

    def exchange(
        self,
        folder: str,
        put: Mapping[str, bytes],
        delete: Collection[str],
        fresh: Callable[[str], str],
    ) -> dict[str, str]:
        """Build the folder anew aside, with links to what stays, and put it in its place."""
        place = self.path / folder
        new, old = self._aside(folder + _NEW), self._aside(folder + _OLD)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            kept = _link_files(place, new, delete, fresh)
            for name, data in put.items():
                _write(new / name, data)
            _sync(new)
            if place.exists():
                shutil.copymode(place, new)
                place.rename(old)
            new.rename(place)
            _sync(self.path)
        except BaseException:
            if old.exists():
                if place.exists():
                    place.rename(new)
                old.rename(place)
            shutil.rmtree(new, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        return kept

    def tidy(self) -> None:
        """Put back what a killed exchange had taken away, and delete what was written aside."""
        aside = self.path / _ASIDE
        for old in aside.glob(f"*{_OLD}"):
            place = self.path / old.name.removesuffix(_OLD)
            if not place.exists():
                old.rename(place)
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir()
        for left in self.path.glob(f".*{_NEW}"):
            left.unlink()

    def lock(self) -> Lock:
        """Take the folder; the operating system lets go of it when the process ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        return local_lock.take(self)

    def _aside(self, name: str) -> Path:
        return self.path / _ASIDE / name

    def _make(self, folder: Path) -> None:
        if folder.exists():
            return
        if self._aside(folder.name + _OLD).exists():
            # Made anew, it would stand where the one with all the files has to go back to.
            raise FileNotFoundError(errno.ENOENT, "an exchange was cut short", str(folder))
        folder.mkdir(parents=True, exist_ok=True)


def _is_own(name: str) -> bool:
    return name in local_lock.FILES or (name.startswith(".") and name.endswith(_NEW))


def _link_files(
    place: Path, new: Path, without: Collection[str], fresh: Callable[[str], str]
) -> dict[str, str]:
    kept = {}
    for path in place.iterdir() if place.exists() else ():
        if path.name in without:
            continue
        if path.is_dir():  # somebody else's
            shutil.copytree(path, new / path.name, copy_function=_link)
        else:
            kept[path.name] = fresh(path.name)
            _link(path, new / kept[path.name])
    return kept


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)


def _write(place: Path, data: bytes) -> None:
    with place.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
