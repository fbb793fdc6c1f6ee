"""Old rows that a commit has still to take away, noted on disk before it is made."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from qb_cluster.storage import Folder
from qb_cluster.store.open_table import OpenTable
from qb_cluster.store.tables import TableName

_NOTES: Final = ".pending"

Gone = Mapping[TableName, Sequence[str]]
"""By table, the cells whose older rows a commit takes away."""


class Pending:
    """The commits whose old rows are still there.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._gone: dict[int, Gone] = {}  # by time of the commit

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._gone)

    def read(self, happened: Collection[int]) -> None:
        """Take up the notes of a driver that ended; those of commits that never happened go."""
        for name in self._folder.names(_NOTES):
            stamp = int(name.removesuffix(".json"))
            if stamp in happened:
                self._gone[stamp] = json.loads(self._folder.read(f"{_NOTES}/{name}"))
            else:
                self._folder.delete(f"{_NOTES}/{name}")

    def note(self, stamp: int, gone: Gone) -> None:
        """Put down what a commit will take away, before it is made."""
        self._folder.put(_note(stamp), json.dumps(gone).encode())

    def forget(self, stamp: int) -> None:
        """Remove the note of a commit that was taken back, if there is one."""
        self._folder.delete(_note(stamp))

    def add(self, stamp: int, gone: Gone) -> None:
        """Remember a commit that was made."""
        self._gone[stamp] = gone

    def settle(self, tables: Mapping[TableName, OpenTable]) -> None:
        """Take old rows away."""
        for stamp, gone in list(self._gone.items()):
            for table, cell_ids in gone.items():
                tables[table].drop(cell_ids, before=stamp)
            self._folder.delete(_note(stamp))
            del self._gone[stamp]


def _note(stamp: int) -> str:
    return f"{_NOTES}/{stamp:020d}.json"
