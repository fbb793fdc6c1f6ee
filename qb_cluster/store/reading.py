"""Reading a run folder, finished or not, in use or not. Nothing here writes."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from qb_cluster.errors import RunFolderError
from qb_cluster.storage import Folder, open_folder
from qb_cluster.store.manifest import read_manifest
from qb_cluster.store.parts import read_parts, undisturbed
from qb_cluster.store.tables import SCHEMAS, TableName

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.int16(): pd.Int16Dtype()}


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What a run folder holds.

    Attributes:
        folder: where it is.
        sweep: name of the sweep.
        spec_digest: digest of the spec run last.
        planned_cells: cells of that spec; ``None`` where nobody counted, or where there are more
            rows and nobody noted which of them are its.
        judgement: how that spec wants results judged, as JSON; ``None`` in older folders.
        results: the table ``results``, one row a cell; integers are nullable (``Int64``).
        layers: the table ``layers``, one row a cell, layer and mode.
        problems: one sentence for each file that was skipped.
        unplanned: cells that have a row and that the spec does not have, as far as was noted.
    """

    folder: Folder
    sweep: str
    spec_digest: str
    planned_cells: int | None
    judgement: dict[str, Any] | None
    results: pd.DataFrame
    layers: pd.DataFrame
    problems: tuple[str, ...]
    unplanned: frozenset[str] = frozenset()

    @property
    def planned_results(self) -> pd.DataFrame:
        """The rows of ``results`` that are of cells of the spec run last."""
        return self.results[~self.results["cell_id"].isin(self.unplanned)]


def read_run(place: str | Path) -> StoredRun:
    """Read a run folder: a path, or the URL of an object store.

    Raises:
        RunFolderError: it is no run folder, cannot be read, or a newer QuantBench wrote it.
    """
    folder = open_folder(place)
    with _explained(folder):
        manifest = read_manifest(folder)
        if manifest is None:
            what = "is no run folder" if folder.exists() else "does not exist"
            raise RunFolderError(
                f"{folder} {what}; give the folder that `qb run` wrote (its --out)"
            )
    problems: list[str] = []
    results = read_table(folder, "results", problems)
    layers = read_table(folder, "layers", problems)
    results = results.drop_duplicates("cell_id", keep="last", ignore_index=True)
    planned = manifest.planned_cells
    if planned is not None and manifest.unplanned is None and planned < len(results):
        planned = None
    return StoredRun(
        folder,
        manifest.sweep,
        manifest.spec_digest,
        planned,
        manifest.judgement,
        results,
        layers.drop_duplicates(["cell_id", "layer", "mode"], keep="last", ignore_index=True),
        tuple(problems),
        frozenset(manifest.unplanned or ()),
    )


def read_results(place: str | Path) -> pd.DataFrame:
    """Read the table ``results`` of a run folder, one row a cell.

    Raises:
        RunFolderError: it is no run folder, cannot be read, or a newer QuantBench wrote it.
    """
    return read_run(place).results


def read_columns(place: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read some columns of the table ``results``, one row per cell; ``cell_id`` comes along.

    Files that are skipped are named by whoever opens the folder.

    Raises:
        RunFolderError: it cannot be read.
    """
    found = read_table(open_folder(place), "results", [], ["cell_id", *columns])
    return found.drop_duplicates("cell_id", keep="last", ignore_index=True)


def read_predictions(folder: Folder, cell_ids: Collection[str]) -> dict[str, pa.Table]:
    """Read what cells predicted, in evaluation order.

    Args:
        folder: the run folder.
        cell_ids: which cells.

    Returns:
        By cell id, for those that have predictions: ``example_id`` and ``predicted``, which is
        null where outputs are no class scores.

    Raises:
        RunFolderError: it cannot be read.
    """
    wanted = pa.array(list(cell_ids), pa.string())

    def read() -> dict[str, pa.Table]:
        found: dict[str, pa.Table] = {}
        columns = ["cell_id", "example_id", "predicted"]
        for _, part in read_parts(folder, "predictions", [], columns):
            rows = part.filter(pc.is_in(part["cell_id"], wanted)).combine_chunks()
            # A cell's rows lie together, in evaluation order; later ones were run again.
            for cell_id, start, end in _runs(rows["cell_id"]):
                found[cell_id] = rows.slice(start, end - start).drop_columns(["cell_id"])
        return found

    with _explained(folder):
        return undisturbed(folder, read)


def read_table(
    folder: Folder, table: TableName, problems: list[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a table of a run folder as it is.

    Args:
        folder: the run folder.
        table: which table.
        problems: gets a sentence for each file that is skipped.
        columns: which columns; ``None`` is all.

    Raises:
        RunFolderError: it cannot be read.
    """

    def read() -> tuple[list[pa.Table], list[str]]:
        skipped: list[str] = []
        return [rows for _, rows in read_parts(folder, table, skipped, columns)], skipped

    with _explained(folder):
        parts, skipped = undisturbed(folder, read)
    problems += skipped
    empty = SCHEMAS[table].empty_table().replace_schema_metadata(None)
    empty = (
        empty if columns is None else empty.select([n for n in empty.column_names if n in columns])
    )
    frame: pd.DataFrame = pa.concat_tables([empty, *parts]).to_pandas(types_mapper=_NULLABLE.get)
    return frame


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Give each run of equal values: value, first row, row after the last."""
    offset = start = 0
    for chunk in column.chunks:
        runs = pc.run_end_encode(chunk)
        values, ends = runs.values.to_pylist(), runs.run_ends.to_pylist()  # noqa: PD011 - of Arrow
        for value, end in zip(values, ends, strict=True):
            yield value, start, offset + end
            start = offset + end
        offset += len(chunk)


@contextmanager
def _explained(folder: Folder) -> Iterator[None]:
    """Turn an error of the storage into one for the user."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be read: {error.strerror or error}") from error
