"""Reading a run folder, finished or not, in use or not. Nothing here writes."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from qb_cluster.errors import RunFolderError
from qb_cluster.store.manifest import read_manifest
from qb_cluster.store.parts import read_parts
from qb_cluster.store.tables import SCHEMAS, TableName

_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.int16(): pd.Int16Dtype()}


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What a run folder holds.

    Attributes:
        sweep: name of the sweep.
        spec_digest: digest of the spec run last.
        planned_cells: cells of that spec; ``None`` where nobody counted.
        results: the table ``results``, one row a cell; integers are nullable (``Int64``).
        problems: one sentence for each file that was skipped.
    """

    sweep: str
    spec_digest: str
    planned_cells: int | None
    results: pd.DataFrame
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
    return StoredRun(
        manifest.sweep,
        manifest.spec_digest,
        manifest.planned_cells,
        results.drop_duplicates("cell_id", keep="last", ignore_index=True),
        tuple(problems),
    )


def read_results(path: Path) -> pd.DataFrame:
    """Read the table ``results`` of a run folder, one row a cell.

    Raises:
        RunFolderError: it is no run folder, or a newer QuantBench wrote it.
    """
    return read_run(path).results


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
