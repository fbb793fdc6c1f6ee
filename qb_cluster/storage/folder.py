"""What a run needs of the place where it keeps its files."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol


class StorageError(OSError):
    """An object store failed or refused; no matter which file was asked for."""


class Lock(Protocol):
    """A folder that is held by this driver alone."""

    def check(self) -> None:
        """Make sure that it is held still; to be asked before each write.

        Raises:
            RunFolderError: another driver may have it by now.
        """

    def release(self) -> None:
        """Let go of the folder; once more does nothing."""


class Folder(Protocol):
    """Files by name; names are relative and have ``/``, and their folders need no making.

    A file is there whole or not at all, at any moment, also after a power cut: what is written
    is not seen before it is complete and made to last. Making one of these does no I/O.

    Every method raises ``OSError`` where the place cannot be used.

    Attributes:
        place: text from which ``open_folder`` makes the same folder again, in any process.
    """

    @property
    def place(self) -> str:
        """Text from which ``open_folder`` makes the same folder again, in any process."""

    def __str__(self) -> str:
        """Give the place as the user wrote it, for messages."""

    def folder(self, name: str) -> "Folder":
        """Give a folder in this one."""

    def exists(self) -> bool:
        """Tell whether the folder itself is there; in an object store: whether anything is."""

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def open(self, name: str) -> Any:
        """Open a file for random access; gives a ``pyarrow.NativeFile``, a context manager.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def size(self, name: str) -> int | None:
        """Give a file's size in bytes; ``None`` where there is no such file."""

    def names(self, folder: str = "") -> list[str]:
        """List what lies directly in a folder of this one, sorted, but for what it keeps itself.

        Returns:
            Names without their folder; none where the folder is not there.

        Raises:
            FileNotFoundError: the folder is being exchanged; it will be back in a moment.
            NotADirectoryError: it is a file.
        """

    def put(self, name: str, data: bytes) -> None:
        """Write a new file. Only the holder of the lock may put.

        Raises:
            FileExistsError: there is such a file.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Write a file, new or not. Several processes may do so at once; one of them wins."""

    def delete(self, name: str) -> None:
        """Delete a file; nothing where there is none."""

    def exchange(
        self,
        folder: str,
        put: Mapping[str, bytes],
        delete: Collection[str],
        fresh: Callable[[str], str],
    ) -> dict[str, str]:
        """Put files into a folder of this one and delete others, in one step if it can be.

        On a local disk a reader sees the files of before or those of after. In an object store
        each file comes in one step, and the others are deleted after all have come: a new file
        has to say itself which ones it replaces, and readers have to heed that meanwhile.

        Args:
            folder: its name.
            put: contents by name in the folder.
            delete: names in the folder.
            fresh: makes a new name for a file that stays. Where files stay under their names, a
                reader that had listed the folder just before the step, but not yet opened its
                files, could take some for gone without a word; with new names it fails.

        Returns:
            New names of the files that stay, by their old ones.
        """

    def tidy(self) -> None:
        """Finish or take back what a killed driver had begun. Only the holder of the lock may."""

    def lock(self) -> Lock:
        """Take the folder for this process alone; makes it first, where it is not there.

        Raises:
            RunFolderError: another driver has it.
        """
