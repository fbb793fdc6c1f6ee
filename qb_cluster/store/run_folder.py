"""The run folder: what has finished is on disk, once, whatever is killed and when.

Everything goes down in group commits. A commit has a time; its parts carry it in their names,
and the last of them, the *marker*, makes the commit true:

=========  ============================  ===========
commit of  parts                         marker
=========  ============================  ===========
stages     predictions, layers           ``stages``
cells      predictions, layers, samples  ``results``
=========  ============================  ===========

Commits follow one another, so parts later than the last marker belong to a commit that never
happened; opening the folder deletes them.

A cell that has a row gets another when its content has changed: the marker then comes in exchange
for the parts with the old row. The old rows of other tables go after the marker; a note in
``.pending``, put before it, names them, so that the next driver takes them away if this one cannot.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from qb_cluster import __version__
from qb_cluster.contracts import FinishedCell, Outcome
from qb_cluster.storage import Folder, Lock, open_folder
from qb_cluster.store import journal, long_tables
from qb_cluster.store.explained import explained
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.manifest import Manifest, refuse_foreign, write_manifest
from qb_cluster.store.merging import MANY, MANY_AT_THE_END
from qb_cluster.store.open_table import OpenTable
from qb_cluster.store.parts import new_name, read_parts
from qb_cluster.store.pending import Gone, Pending
from qb_cluster.store.rows import results_table
from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS, TABLES, TableName

_MARKERS: Final[tuple[TableName, ...]] = ("stages", "results")
_LONG: Final[tuple[TableName, ...]] = ("predictions", "layers", "samples")
_ENDED: Final = ("cell_id", "status", "content_key")
_KEYED: Final[tuple[TableName, ...]] = ("environments", "sweeps")


class RunFolder:
    """An open run folder. One driver has it at a time; its methods are called from one thread.

    Attributes:
        place: where it is, as text that ``open_folder`` understands in any process.
        problems: one sentence for each file in a table's folder that is no part of ours, or is
            damaged. Such files are skipped, and cells that were in them run again.
    """

    def __init__(self, folder: Folder, held: Lock, manifest: Manifest) -> None:
        self.place = folder.place
        self.problems: list[str] = []
        self._folder = folder
        self._held = held
        self._manifest = manifest
        self._tables = {table: OpenTable(folder, table) for table in TABLES}
        self._keys: dict[TableName, set[str]] = {}
        self._finished: dict[str, str] = {}  # status by cell id
        self._unplanned: set[str] = set()  # of the finished ones
        self._content_keys: dict[str, str] = {}  # by cell id
        self._journaled: dict[str, datetime] = {}  # start of the stage by cell id
        self._strays: frozenset[str] = frozenset()  # cells with rows in tables, but with no marker
        self._last_stamp = 0
        self._is_closed = False
        self._failed: int | None = None  # time of a commit that could not be taken back yet
        self._pending = Pending(folder)

    @classmethod
    def open(
        cls,
        place: str | Path,
        *,
        sweep: str,
        spec_text: str,
        spec_digest: str,
        planned_cells: int | None = None,
        judgement: dict[str, Any] | None = None,
    ) -> Self:
        """Make a run folder, or open one to resume it or to grow its sweep.

        Args:
            place: a path, whose parents are made too, or the URL of an object store.
            sweep: name of the sweep; a folder belongs to one.
            spec_text: the spec, for the record.
            spec_digest: its digest, for the record.
            planned_cells: how many cells it has, so that a report can say how many are missing.
            judgement: how it wants results judged, as JSON, for reports.

        Raises:
            RunFolderError: it is no folder, cannot be written, holds something else, belongs to
                another sweep, is in use, or was written by another version of QuantBench.
        """
        folder = open_folder(place)
        with explained(f"{folder} cannot be used as a run folder", "choose another --out"):
            refuse_foreign(folder, sweep)  # before anything is made in what may be somebody else's
            manifest = Manifest(SCHEMA_VERSION, sweep, spec_digest, planned_cells, judgement)
            run = cls(folder, folder.lock(), manifest)
            try:
                refuse_foreign(folder, sweep)  # another driver may have made it meanwhile
                write_manifest(folder, manifest)
                run._prepare()
                run._record_spec(sweep, spec_text, spec_digest)
            except BaseException:
                run._let_go()
                raise
        return run

    @property
    def artifacts(self) -> str:
        """The place of artifacts and outputs, as text that any process understands."""
        return self._folder.folder("artifacts").place

    def count_only(self, planned: Iterable[str]) -> None:
        """Count the cells of a plan alone, here and in reports; rows of other cells stay.

        Args:
            planned: the ids of all its cells; not read where there are no rows yet.

        Raises:
            RunFolderError: it cannot be noted.
        """
        self._unplanned = set(self._finished)
        self._unplanned.difference_update(planned if self._unplanned else ())
        noted = replace(self._manifest, unplanned=sorted(self._unplanned))
        with explained(f"{self._folder}: its plan cannot be noted", "make room there"):
            write_manifest(self._folder, noted)

    def count(self) -> int:
        """Count the cells that have a row, see ``count_only``."""
        return len(self._finished) - len(self._unplanned)

    def finished(self) -> dict[str, str]:
        """Give the status of every cell that has a row, by cell id, see ``count_only``."""
        return {i: status for i, status in self._finished.items() if i not in self._unplanned}

    def content_keys(self) -> dict[str, str]:
        """Give the content key of every cell that had a row when the folder was opened, by cell id.

        Rows without one are left out.
        """
        return dict(self._content_keys)

    def stage_outcomes(self) -> dict[str, JournalEntry]:
        """Read the journal: the latest quality outcome of each cell that has one, by cell id.

        It holds cells that are still to be timed, and every baseline, finished or not.
        """
        known = {
            row["env_id"]: json.loads(row["environment_json"])
            for _, rows in read_parts(self._folder, "environments", [])
            for row in rows.to_pylist()
        }
        found = (
            journal.from_row(row, known.get(row["env_id"], {}))
            for _, rows in read_parts(self._folder, "stages", [])
            for row in rows.to_pylist()
        )
        return {entry.outcome.cell_id: entry for entry in found}

    def commit_stages(self, finished: Sequence[JournalEntry]) -> None:
        """Journal quality stages, with their predictions and layers, all or none.

        An entry takes the place of an older one of the cell, and its predictions and layers that
        of the older ones.

        Raises:
            RunFolderError: the disk is full or fails. Nothing committed earlier is lost.
            ValueError: an outcome is not that of a quality stage that ended ok.
        """
        latest = {
            entry.outcome.cell_id: entry
            for entry in finished
            if not self._is_journaled(entry.outcome)
        }
        rows = [journal.to_row(entry) for entry in latest.values()]
        outcomes = [entry.outcome for entry in latest.values()]
        again = [cell_id for cell_id in latest if self._has_rows(cell_id)]
        self._commit(
            "stages",
            _table("stages", rows),
            {
                "predictions": long_tables.predictions(outcomes),
                "layers": long_tables.layers(outcomes),
            },
            {"stages": again, "predictions": again, "layers": again},
            outcomes,
        )
        self._journaled.update((outcome.cell_id, outcome.started_at) for outcome in outcomes)

    def commit_cells(self, finished: Sequence[FinishedCell]) -> None:
        """Write the rows of finished cells, with all that belongs to them, all or none.

        A row takes the place of an older one of the cell, with all that belonged to that.

        Raises:
            RunFolderError: the disk is full or fails. Nothing committed earlier is lost.
            ValueError: a cell is there twice, or a stage has found what does not fit the table.
        """
        ids = [ended.cell.cell_id for ended in finished]
        if len(set(ids)) < len(ids):
            twice = sorted({cell_id for cell_id in ids if ids.count(cell_id) > 1})
            raise ValueError(f"cells have two rows in one commit: {twice}")
        outcomes = [outcome for ended in finished for outcome in ended.outcomes]
        again = [cell_id for cell_id in ids if self._has_rows(cell_id)]
        journaled = {outcome.cell_id for outcome in outcomes if self._is_journaled(outcome)}
        fresh = [outcome for outcome in outcomes if not self._is_journaled(outcome)]
        stale = [cell_id for cell_id in again if cell_id not in journaled]
        self._commit(
            "results",
            results_table(finished, self._manifest.spec_digest),
            {
                "predictions": long_tables.predictions(fresh),
                "layers": long_tables.layers(fresh),
                "samples": long_tables.samples(
                    [(outcome, ended.attempt) for ended in finished for outcome in ended.outcomes]
                ),
            },
            {
                "results": again,
                "samples": again,
                "predictions": stale,
                "layers": stale,
                "stages": stale,
            },
            outcomes,
        )
        self._finished.update((ended.cell.cell_id, ended.status) for ended in finished)
        for cell_id in stale:
            self._journaled.pop(cell_id, None)

    def close(self) -> None:
        """Put small parts together, and let go of the folder; once more does nothing."""
        if self._is_closed:
            return
        try:
            self._merge(TABLES, MANY_AT_THE_END)
        finally:
            self._let_go()

    def __enter__(self) -> Self:
        """Give the folder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the folder."""
        if kind is None:
            self.close()
        else:
            self._let_go()

    def _let_go(self) -> None:
        self._is_closed = True
        self._held.release()

    def _prepare(self) -> None:
        """Finish what was begun, delete what never happened, and read the rest."""
        self._folder.tidy()
        happened = set[int]().union(*(self._tables[marker].stamps() for marker in _MARKERS))
        for name, table in self._tables.items():
            self._last_stamp = max([self._last_stamp, *table.stamps()])
            table.clear(after=max(happened, default=0) if name in _LONG else None)
        self._read_markers()
        self._read_others()
        self._pending.read(happened)
        self._settle()

    def _read_markers(self) -> None:
        for rows in self._tables["results"].read(_ENDED, self.problems):
            ids, statuses, keys = (column.to_pylist() for column in rows.columns)
            self._finished.update(zip(ids, map(sys.intern, statuses), strict=True))
            found = zip(ids, keys, strict=True)
            self._content_keys.update((cell_id, key) for cell_id, key in found if key is not None)
        for rows in self._tables["stages"].read(["cell_id", "started_at"], self.problems):
            ids, starts = (column.to_pylist() for column in rows.columns)
            self._journaled.update(zip(ids, starts, strict=True))

    def _read_others(self) -> None:
        # A damaged marker hides cells that have rows in other tables.
        columns = ["cell_id"] if self.problems else []
        strays = set[str]()
        for table in _LONG:
            for rows in self._tables[table].read(columns, self.problems):
                strays.update(rows["cell_id"].unique().to_pylist() if columns else ())
        self._strays = frozenset(strays - self._finished.keys() - self._journaled.keys())
        for table in _KEYED:
            list(self._tables[table].read([], self.problems))
            self._keys[table] = {n.removesuffix(".parquet") for n in self._folder.names(table)}

    def _has_rows(self, cell_id: str) -> bool:
        return cell_id in self._finished or cell_id in self._journaled or cell_id in self._strays

    def _is_journaled(self, outcome: Outcome) -> bool:
        return self._journaled.get(outcome.cell_id) == outcome.started_at

    def _record_spec(self, sweep: str, spec_text: str, spec_digest: str) -> None:
        self._write_once(
            "sweeps",
            spec_digest,
            {
                "spec_digest": spec_digest,
                "sweep": sweep,
                "spec_text": spec_text,
                "qb_cluster_version": __version__,
                "recorded_at": datetime.now(UTC),
            },
        )

    def _write_once(self, table: TableName, key: str, row: Mapping[str, Any]) -> None:
        """Write a part of one row that is named by its key."""
        if key not in self._keys[table]:
            self._tables[table].put(f"{key}.parquet", _table(table, [row]))
            self._keys[table].add(key)

    def _commit(
        self,
        marker: TableName,
        rows: pa.Table,
        parts: Mapping[TableName, pa.Table],
        gone: Gone,
        outcomes: Sequence[Outcome],
    ) -> None:
        if not len(rows):
            return
        self._held.check()
        with explained(
            f"{self._folder}: {len(rows)} finished {marker} cannot be written",
            "nothing written earlier is lost: make room or repair the disk, then run the same "
            "command again",
        ):
            self._settle()
            stamp = self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
            for outcome in outcomes:
                if outcome.env_id and outcome.env_id not in self._keys["environments"]:
                    row = long_tables.environment(outcome)
                    self._write_once("environments", outcome.env_id, row)
            after = {table: ids for table, ids in gone.items() if ids and table != marker}
            try:
                if after:
                    self._pending.note(stamp, after)
                for table, data in parts.items():
                    if len(data):
                        self._tables[table].put(new_name(stamp), data)
                if gone[marker]:
                    self._tables[marker].put_instead(stamp, rows, gone[marker])
                else:
                    self._tables[marker].put(new_name(stamp), rows)
            except BaseException:
                self._failed = stamp
                with suppress(OSError):  # then before the next commit, or when it is next opened
                    self._undo()
                raise
            if after:
                self._pending.add(stamp, after)
                self._settle()
        self._merge((*parts, marker), MANY)

    def _settle(self) -> None:
        """Take back what failed, and finish what was committed but for its old rows."""
        self._undo()
        self._pending.settle(self._tables)

    def _undo(self) -> None:
        """Take back a commit that failed, the marker first: it never stands without its parts."""
        if self._failed is None:
            return
        for table in (*_MARKERS, *_LONG):
            self._tables[table].undo(self._failed)
        self._pending.forget(self._failed)
        self._failed = None

    def _merge(self, tables: Sequence[TableName], many: int) -> None:
        """Put small parts together, where that can be done; rows are safe either way."""
        if self._pending or self._failed is not None:
            return
        for table in tables:
            if table not in _KEYED:
                with suppress(OSError, pa.ArrowException):
                    self._tables[table].merge(many)


def _table(table: TableName, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[table])
