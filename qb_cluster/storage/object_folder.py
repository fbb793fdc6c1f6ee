"""A folder of an object store: S3, what speaks its language, or Google Cloud Storage."""

import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import pyarrow as pa
from pyarrow import fs

from qb_cluster.errors import RunFolderError
from qb_cluster.storage.folder import Lock, StorageError
from qb_cluster.storage.object_lock import LOCKS, ObjectLock

_OPTIONS: Final = {
    "s3": ("allow_delayed_open", "true"),  # one request for a small file, not three
    "gs": ("retry_limit_seconds", "30"),  # of its own it would try for a quarter of an hour
}
_HINTS: Final = {
    "NO_SUCH_BUCKET": "there is no such bucket: make it first, or mind its spelling",
    "not found": "there is no such bucket: make it first, or mind its spelling",
    "ACCESS_DENIED": "these credentials may not do this: ask for read and write access",
    "INVALID_ACCESS_KEY_ID": "the store does not know these credentials",
    "SIGNATURE_DOES_NOT_MATCH": "the store does not accept these credentials",
    "HTTP status 403": "these credentials may not do this, or there are none: give some, as by "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "access token": "give credentials, as by GOOGLE_APPLICATION_CREDENTIALS",
    "NETWORK_CONNECTION": "the store cannot be reached: mind the endpoint and the network",
}


class ObjectFolder:
    """Files in an object store, which takes each whole in one step.

    Args:
        url: ``s3://bucket/prefix`` or ``gs://bucket/prefix``, with options of ``pyarrow.fs``
            after a ``?``, such as ``endpoint_override``, ``scheme`` and ``region``. (Without one
            of these the bucket's region is asked for here.)
        opened: its file system and the path in it, where they are known.

    Raises:
        RunFolderError: the URL is not understood.
    """

    def __init__(self, url: str, opened: tuple[Any, str] | None = None) -> None:
        base, _, self._options = url.partition("?")
        self._base = base.rstrip("/")
        try:
            self._system, self._root = opened or _opened(self._base, self._options)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RunFolderError(
                f"{self} is no place to store in: {_explanation(error)}; give "
                "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, with options of pyarrow.fs after a ?"
            ) from error
        self._undeleted: set[str] = set()

    @property
    def place(self) -> str:
        """Give the URL with its options."""
        return f"{self._base}?{self._options}".rstrip("?")

    def __str__(self) -> str:
        """Give the URL without credentials and options, which may hold secrets."""
        return re.sub(r"//[^/]*@", "//", self._base)

    def folder(self, name: str) -> "ObjectFolder":
        """Give a folder in this one."""
        url = f"{self._base}/{name}?{self._options}".rstrip("?")
        return ObjectFolder(url, (self._system, f"{self._root}/{name}"))

    def exists(self) -> bool:
        """Tell whether anything is there."""
        return bool(self.names())

    def read(self, name: str) -> bytes:
        """Read a file."""
        with _told(), self._system.open_input_file(self._path(name)) as file:
            content: bytes = file.read()
        return content

    def open(self, name: str) -> Any:
        """Open a file for random access."""
        with _told():
            file = self._system.open_input_file(self._path(name))
        return pa.PythonFile(_Reader(file), mode="r")

    def size(self, name: str) -> int | None:
        """Give a file's size in bytes."""
        with _told():
            found = self._system.get_file_info(self._path(name))
        size: int | None = found.size if found.type == fs.FileType.File else None
        return size

    def names(self, folder: str = "") -> list[str]:
        """List a folder, sorted."""
        found = sorted(self.written_at(folder))
        return found if folder else [name for name in found if name != LOCKS]

    def written_at(self, folder: str) -> dict[str, float]:
        """List a folder with the times at which its files were written, by the store's clock.

        Returns:
            Seconds since 1970 by name; 0 for folders.
        """
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        with _told():
            found = self._system.get_file_info(selector)
        return {info.base_name: (info.mtime_ns or 0) / 1e9 for info in found}

    def put(self, name: str, data: bytes) -> None:
        """Write a new file; the caller holds the lock, so looking before is as good."""
        if self.size(name) is not None:
            raise FileExistsError(f"there is such a file already: {self}/{name}")
        self.replace(name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file; the store shows it once it has all of it."""
        with _told(), self._system.open_output_stream(self._path(name)) as file:
            file.write(data)

    def delete(self, name: str) -> None:
        """Delete a file."""
        with suppress(FileNotFoundError), _told():
            self._system.delete_file(self._path(name))

    def exchange(
        self,
        folder: str,
        put: Mapping[str, bytes],
        delete: Collection[str],
        fresh: Callable[[str], str],  # noqa: ARG002 - nothing is renamed here
    ) -> dict[str, str]:
        """Put files, then delete others; what cannot be deleted now goes with the next exchange."""
        self._delete_left()
        for name, data in put.items():
            self.put(f"{folder}/{name}", data)
        self._undeleted = {f"{folder}/{name}" for name in delete}
        with suppress(OSError):
            self._delete_left()
        return {}

    def tidy(self) -> None:
        """Do nothing: nothing is written aside here."""

    def lock(self) -> Lock:
        """Take the folder for this process alone."""
        return ObjectLock.take(self)

    def _delete_left(self) -> None:
        for name in sorted(self._undeleted):
            self.delete(name)
            self._undeleted.discard(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


class _Reader(io.RawIOBase):
    """A file of the store whose troubles are the store's, and not damage to the file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with _told():
            content: bytes = self._file.read(None if size is None or size < 0 else size)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _told() -> Iterator[None]:
    """Say what to do about an error of the store."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(_explanation(error)) from error


def _explanation(error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    hint = next((hint for sign, hint in _HINTS.items() if sign in reason), "")
    return f"{hint} ({reason})" if hint else reason


def _opened(base: str, options: str) -> tuple[Any, str]:
    """Make the file system of a URL, and the path in it.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: the URL is not understood, or its bucket's
            region is not given and cannot be asked for.
    """
    scheme = base.partition(":")[0]
    name, value = _OPTIONS["s3" if scheme == "s3" else "gs"]
    if name not in options:
        options = f"{options}&{name}={value}".lstrip("&")
    system, root = fs.FileSystem.from_uri(f"{base}?{options}")
    if not root.strip("/"):
        raise ValueError("it names no bucket")
    return system, root
