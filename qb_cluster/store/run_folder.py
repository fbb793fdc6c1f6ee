"""The run folder: what has finished is on disk, once, whatever is killed and when.

Everything goes down in group commits. A commit has an id that sorts by time; its parts carry it
as their name, and the last of them, the *marker*, makes the commit true:

=========  ============================  ===========
commit of  parts                         marker
=========  ============================  ===========
stages     predictions, layers           ``stages``
cells      predictions, layers, samples  ``results``
=========  ============================  ===========

Parts without their marker belong to a commit that never happened; opening the folder deletes
them. So parts are not to be renamed or merged by hand while the run may still be resumed.
"""

import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
from filelock import FileLock

from qb_cluster import __version__
from qb_cluster.contracts import Outcome
from qb_cluster.errors import RunFolderError
from qb_cluster.store import journal, long_tables
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.lock import HOLDER, LOCK_FILES, lock
from qb_cluster.store.manifest import MANIFEST_ASIDE, Manifest, read_manifest, write_manifest
from qb_cluster.store.parts import ASIDE, entries, make_table, part_path, read_parts, write_part
from qb_cluster.store.rows import FinishedCell
from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS, TABLES, TableName

_PART: Final = re.compile(r"(\d{20})-[0-9a-f]{8}\.parquet")
_COLUMNS_ONLY: Final = "columns"
"""A part without rows in each table: readers see its columns before anything has finished."""


class RunFolder:
    """An open run folder. One driver has it at a time; its methods are called from one thread.

    Attributes:
        path: the folder.
        problems: one sentence for each file in a table's folder that is no part of ours, or is
            damaged. Such files are skipped, and cells that were in them run again.
    """

    def __init__(self, path: Path, held: FileLock) -> None:
        self.path = path
        self.problems: list[str] = []
        self._held = held
        self._finished: dict[str, str] = {}  # status by cell id
        self._journaled: set[tuple[str, datetime]] = set()  # cell id, start of the stage
        self._last_stamp = 0

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        sweep: str,
        spec_text: str,
        spec_digest: str,
        planned_cells: int | None = None,
    ) -> Self:
        """Make a run folder, or open one to resume it or to grow its sweep.

        Args:
            path: the folder; parents are made too.
            sweep: name of the sweep; a folder belongs to one.
            spec_text: the spec, for the record.
            spec_digest: its digest, for the record.
            planned_cells: how many cells it has, so that a report can say how many are missing.

        Raises:
            RunFolderError: it is no folder, cannot be written, holds something else, belongs to
                another sweep, is in use, or was written by another version of QuantBench.
        """
        with _explained(f"{path} cannot be used as a run folder", "choose another --out"):
            _check(path, sweep)  # before anything is made in what may be somebody else's
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, lock(path))
            try:
                _check(path, sweep)  # another driver may have made it meanwhile
                write_manifest(path, Manifest(SCHEMA_VERSION, sweep, spec_digest, planned_cells))
                run._prepare()
                run._record_spec(sweep, spec_text, spec_digest)
            except BaseException:
                run.close()
                raise
        return run

    def finished(self) -> dict[str, str]:
        """Give the status of every cell that has a row, by cell id."""
        return dict(self._finished)

    def stage_outcomes(self) -> dict[str, JournalEntry]:
        """Read the journal: the latest quality outcome of each cell that has one, by cell id.

        It holds cells that are still to be timed, and every baseline, finished or not.
        """
        found = (
            journal.from_row(row)
            for part in read_parts(self.path, "stages", [])
            for row in part.to_pylist()
        )
        return {entry.outcome.cell_id: entry for entry in found}

    def commit_stages(self, finished: Sequence[JournalEntry]) -> None:
        """Journal quality stages, with their predictions and layers, all or none.

        Raises:
            RunFolderError: the disk is full or fails. Nothing committed earlier is lost.
            ValueError: an outcome is not that of a quality stage that ended ok.
        """
        rows = [journal.to_row(entry) for entry in finished]
        outcomes = [entry.outcome for entry in finished]
        self._commit("stages", rows, self._fresh(outcomes), outcomes)
        self._journaled.update((outcome.cell_id, outcome.started_at) for outcome in outcomes)

    def commit_cells(self, finished: Sequence[FinishedCell]) -> None:
        """Write the rows of finished cells, with all that belongs to them, all or none.

        Raises:
            RunFolderError: the disk is full or fails. Nothing committed earlier is lost.
            ValueError: a cell has a row already.
        """
        cell_ids = [cell.row["cell_id"] for cell in finished]
        twice = self._finished.keys() & set(cell_ids)
        if twice or len(set(cell_ids)) < len(cell_ids):
            raise ValueError(f"cells have a row already: {sorted(twice) or cell_ids}")
        outcomes = [outcome for cell in finished for outcome in cell.outcomes]
        parts = self._fresh(outcomes)
        if any(outcome.samples for outcome in outcomes):
            parts["samples"] = long_tables.samples(
                [(outcome, cell.row["attempt"]) for cell in finished for outcome in cell.outcomes]
            )
        self._commit("results", [cell.row for cell in finished], parts, outcomes)
        self._finished.update((cell.row["cell_id"], cell.row["status"]) for cell in finished)

    def close(self) -> None:
        """Let go of the folder."""
        if self._held.is_locked:
            with suppress(OSError):
                (self.path / HOLDER).unlink(missing_ok=True)
            self._held.release()

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
        self.close()

    def _prepare(self) -> None:
        """Make what is missing, delete what never happened, read what is there."""
        (self.path / ASIDE).mkdir(exist_ok=True)
        _delete_leftovers(self.path)
        for table in TABLES:
            make_table(self.path, table, _COLUMNS_ONLY)
        for part in self._read("results", ["cell_id", "status"]):
            cell_ids, statuses = (column.to_pylist() for column in part.columns)
            self._finished.update(zip(cell_ids, statuses, strict=True))
        for part in self._read("stages", ["cell_id", "started_at"]):
            cell_ids, starts = (column.to_pylist() for column in part.columns)
            self._journaled.update(zip(cell_ids, starts, strict=True))
        for table in TABLES:
            if table not in {"results", "stages"}:
                list(self._read(table, []))
            stamps = (_PART.fullmatch(path.name) for path in entries(self.path, table))
            self._last_stamp = max(
                [self._last_stamp, *(int(match[1]) for match in stamps if match)]
            )

    def _read(self, table: TableName, columns: Sequence[str]) -> Iterator[pa.Table]:
        return read_parts(self.path, table, self.problems, columns)

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
        """Write a part of one row that is named by its key, unless it is there."""
        if not part_path(self.path, table, key).exists():
            write_part(self.path, table, key, _table(table, [row]))

    def _fresh(self, outcomes: Sequence[Outcome]) -> dict[TableName, pa.Table]:
        """Collect the predictions and layers that are not on disk yet."""
        fresh = [
            outcome
            for outcome in outcomes
            if outcome.cell_id not in self._finished
            and (outcome.cell_id, outcome.started_at) not in self._journaled
        ]
        parts: dict[TableName, pa.Table] = {
            "predictions": long_tables.predictions(fresh),
            "layers": long_tables.layers(fresh),
        }
        return {table: data for table, data in parts.items() if len(data)}

    def _commit(
        self,
        marker: TableName,
        rows: Sequence[Mapping[str, Any]],
        parts: dict[TableName, pa.Table],
        outcomes: Sequence[Outcome],
    ) -> None:
        if not rows:
            return
        parts = {**parts, marker: _table(marker, rows)}  # the marker comes last
        self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        commit = f"{self._last_stamp:020d}-{uuid.uuid4().hex[:8]}"
        with _explained(
            f"{self.path}: {len(rows)} finished {marker} cannot be written",
            "nothing written earlier is lost: make room or repair the disk, then run the same "
            "command again",
        ):
            for outcome in outcomes:
                if outcome.env_id:
                    row = long_tables.environment(outcome)
                    self._write_once("environments", outcome.env_id, row)
            try:
                for table, data in parts.items():
                    write_part(self.path, table, commit, data)
            except BaseException:
                self._undo(commit, list(parts))
                raise

    def _undo(self, commit: str, tables: Sequence[TableName]) -> None:
        """Take back a commit that failed, the marker first: it never stands without its parts."""
        with suppress(OSError):  # what cannot be deleted now goes when the folder is next opened
            for table in reversed(tables):
                part_path(self.path, table, commit).unlink(missing_ok=True)


def _table(table: TableName, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[table])


def _check(path: Path, sweep: str) -> None:
    """Refuse what is not ours.

    Raises:
        RunFolderError: the path is a file, or a folder that holds something else.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; choose another --out")
    manifest = read_manifest(path)
    if manifest is None:
        # A run that was killed while it made the folder has left no more than these.
        begun = {*LOCK_FILES, MANIFEST_ASIDE}
        names = sorted(e.name for e in path.iterdir()) if path.exists() else []
        others = [name for name in names if name not in begun]
        if others:
            shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            raise RunFolderError(
                f"{path} is no run folder and not empty ({shown}); choose another --out"
            )
    elif manifest.schema_version < SCHEMA_VERSION:
        raise RunFolderError(
            f"{path} has the older layout {manifest.schema_version}, which can be reported on but "
            "not added to; choose another --out"
        )
    elif manifest.sweep != sweep:
        raise RunFolderError(
            f"{path} belongs to the sweep '{manifest.sweep}', not '{sweep}'; choose another "
            f"--out, or give the spec its name back"
        )


def _delete_leftovers(run: Path) -> None:
    """Delete what a killed driver had begun: files written aside, and parts without a marker."""
    shutil.rmtree(run / ASIDE)
    (run / ASIDE).mkdir()
    results = {path.name for path in entries(run, "results")}
    stages = {path.name for path in entries(run, "stages")}
    markers: dict[TableName, set[str]] = {
        "predictions": stages | results,
        "layers": stages | results,
        "samples": results,
    }
    for table, known in markers.items():
        for path in entries(run, table):
            if _PART.fullmatch(path.name) and path.name not in known:
                path.unlink()


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    """Turn an error of the file system into one for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(f"{what}: {reason}; {advice}") from error
