"""Reading a run folder, finished or not, in use or not. Nothing here writes."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from qb_cluster.errors import RunFolderError
from qb_cluster.store.manifest import read_manifest
from qb_cluster.store.parts import read_parts
from qb_cluster.store.tables import SCHEMAS, TableName

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.int16(): pd.Int16Dtype()}


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What a run folder holds.

    Attributes:
        path: the folder.
        sweep: name of the sweep.
        spec_digest: digest of the spec run last.
        planned_cells: cells of that spec; ``None`` where nobody counted.
        results: the table ``results``, one row a cell; integers are nullable (``Int64``).
        layers: the table ``layers``, one row a cell, layer and mode.
        problems: one sentence for each file that was skipped.
    """

    path: Path
    sweep: str
    spec_digest: str
    planned_cells: int | None
    results: pd.DataFrame
    layers: pd.DataFrame
    problems: tuple[str, ...]


def read_run(path: Path) -> StoredRun:
    """Read a run folder.

    Raises:
        RunFolderError: it is no run folder, or a newer QuantBench wrote it.
    """
    try:
        manifest = read_manifest(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    if manifest is None:
        what = "is no run folder" if path.exists() else "does not exist"
        raise RunFolderError(f"{path} {what}; give the folder that `qb run` wrote (its --out)")
    problems: list[str] = []
    results = read_table(path, "results", problems)
    layers = read_table(path, "layers", problems)
    return StoredRun(
        path,
        manifest.sweep,
        manifest.spec_digest,
        manifest.planned_cells,
        results.drop_duplicates("cell_id", keep="last", ignore_index=True),
        layers.drop_duplicates(["cell_id", "layer", "mode"], keep="last", ignore_index=True),
        tuple(problems),
    )


def read_results(path: Path) -> pd.DataFrame:
    """Read the table ``results`` of a run folder, one row a cell.

    Raises:
        RunFolderError: it is no run folder, or a newer QuantBench wrote it.
    """
    return read_run(path).results


def read_predictions(path: Path, cell_ids: Collection[str]) -> dict[str, pa.Table]:
    """Read what cells predicted, in evaluation order.

    Args:
        path: the run folder.
        cell_ids: which cells.

    Returns:
        By cell id, for those that have predictions: ``example_id`` and ``predicted``, which is
        null where outputs are no class scores.
    """
    found: dict[str, pa.Table] = {}
    for part in read_parts(path, "predictions", [], ["cell_id", "example_id", "predicted"]):
        ids = part["cell_id"].unique().to_pylist()
        for cell_id in set(ids) & set(cell_ids):  # a later part is a stage that was run again
            rows = part.filter(pc.field("cell_id") == cell_id)
            found[cell_id] = rows.drop_columns(["cell_id"]).combine_chunks()
    return found


def read_table(path: Path, table: TableName, problems: list[str]) -> pd.DataFrame:
    """Read a table of a run folder as it is.

    Args:
        path: the run folder.
        table: which table.
        problems: gets a sentence for each file that is skipped.
    """
    empty = SCHEMAS[table].empty_table().replace_schema_metadata(None)
    parts = pa.concat_tables([empty, *read_parts(path, table, problems)])
    frame: pd.DataFrame = parts.to_pandas(types_mapper=_NULLABLE.get)
    return frame
