"""A table of a run folder, in the hands of the driver that holds the folder."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qb_cluster.storage import Folder
from qb_cluster.store.merging import parts_to_merge
from qb_cluster.store.parts import (
    Part,
    encoded,
    entries,
    is_columns,
    is_replacing,
    make_table,
    new_name,
    read_parts,
    renamed,
    replaced,
    rewritten,
    stamp_of,
)
from qb_cluster.store.tables import TableName


class OpenTable:
    """A table's parts, as they are and as they change.

    It knows only parts that are ours, whole, and of a commit: whatever else is in the table's
    folder stays there as it is.

    Args:
        folder: the run folder.
        name: of the table.
    """

    def __init__(self, folder: Folder, name: TableName) -> None:
        self.name: TableName = name
        self._folder = folder
        self._parts: list[Part] = []

    def clear(self, after: int | None = None) -> None:
        """Delete parts that others replace, and those of commits that never happened.

        Args:
            after: time of the last commit that did happen; ``None`` is now.
        """
        names = entries(self._folder, self.name)
        gone = replaced(self._folder, self.name, names)
        if after is not None:
            gone |= {name for name in names if (stamp_of(name) or 0) > after}
        for name in gone:
            self._folder.delete(f"{self.name}/{name}")

    def stamps(self) -> set[int]:
        """Read from the names in its folder of which commits it has rows; damaged ones too."""
        found = map(stamp_of, entries(self._folder, self.name))
        return {stamp for stamp in found if stamp is not None}

    def read(self, columns: Sequence[str], problems: list[str]) -> Iterator[pa.Table]:
        """Make it if it is missing, read it part by part, and get to know its parts."""
        make_table(self._folder, self.name)
        self._parts = []
        for part, rows in read_parts(self._folder, self.name, problems, columns):
            if part.stamp is not None:
                self._parts.append(part)
            yield rows

    def put(self, name: str, rows: pa.Table) -> None:
        """Add a part.

        Args:
            name: of the part; it sorts after those that are there.
            rows: its rows.
        """
        self._folder.put(f"{self.name}/{name}", encoded(rows))
        self._parts.append(Part(name, len(rows)))

    def put_instead(self, stamp: int, rows: pa.Table, without: Collection[str]) -> None:
        """Add rows and take those that cells had before away, in one step.

        Args:
            stamp: time of the commit.
            rows: the new ones.
            without: the cells.
        """
        touched = [part.name for part in self._holding(without, stamp)]
        if touched:
            content = rewritten(self._folder, self.name, touched, without=without, more=rows)
            self._exchange({new_name(stamp, is_replacing=True): content}, touched)
        else:
            self.put(new_name(stamp), rows)

    def drop(self, cell_ids: Collection[str], before: int) -> None:
        """Take the rows of cells away that were committed before a time."""
        put: dict[str, tuple[bytes, int]] = {}
        touched = self._holding(cell_ids, before)
        for part in touched:
            name = new_name(part.stamp or 0, is_replacing=True)
            put[name] = rewritten(self._folder, self.name, [part.name], without=cell_ids)
        if touched:
            self._exchange(put, [part.name for part in touched])

    def undo(self, stamp: int) -> None:
        """Delete what a commit that failed has put.

        Raises:
            OSError: it has taken the place of others already, and stands.
        """
        for name in entries(self._folder, self.name):
            if stamp_of(name) != stamp:
                continue
            if is_replacing(name):  # those it replaces may be gone
                raise OSError(f"the commit {name} was cut short and has to be opened anew")
            self._folder.delete(f"{self.name}/{name}")
        self._parts = [part for part in self._parts if part.stamp != stamp]

    def merge(self, many: int) -> None:
        """Merge small parts, if there are so many of a size."""
        count = parts_to_merge([part.rows for part in self._parts], many)
        if count:
            parts = self._parts[-count:]
            names = [part.name for part in parts]
            merged = new_name(parts[-1].stamp or 0, is_replacing=True)
            self._exchange({merged: rewritten(self._folder, self.name, names)}, names)

    def _holding(self, cell_ids: Collection[str], before: int) -> list[Part]:
        """Find the parts of earlier commits that have rows of cells."""
        wanted = pa.array(list(cell_ids), pa.string())
        found = []
        for part in self._parts:
            if (part.stamp or 0) >= before:
                continue
            with (
                self._folder.open(f"{self.name}/{part.name}") as source,
                pq.ParquetFile(source, read_dictionary=["cell_id"]) as file,
            ):
                present = file.read(["cell_id"], use_threads=False)["cell_id"].unique()
            if pc.any(pc.is_in(present.cast(pa.string()), wanted)).as_py():
                found.append(part)
        return found

    def _exchange(self, put: Mapping[str, tuple[bytes, int]], delete: Collection[str]) -> None:
        known = {part.name for part in self._parts}

        def fresh(name: str) -> str:
            return renamed(name) if name in known or is_columns(name) else name

        contents = {name: content for name, (content, _) in put.items()}
        kept = self._folder.exchange(self.name, contents, delete, fresh)
        stay = [
            Part(kept.get(part.name, part.name), part.rows)
            for part in self._parts
            if part.name not in delete
        ]
        new = [Part(name, rows) for name, (_, rows) in put.items()]
        self._parts = sorted([*stay, *new], key=lambda part: part.name)
