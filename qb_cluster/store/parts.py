"""Parquet parts: written whole or not at all, read with suspicion.

A part's name begins with the time of the commit it belongs to, or of the last of them, so parts
sort by time. A part that others have been merged into says in its metadata which ones it replaces:
where a folder's files can't be exchanged in one step, they lie beside it for a while.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qb_cluster.errors import RunFolderError
from qb_cluster.storage import Folder, StorageError
from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS, TableName

_VERSION: Final = b"qb_cluster.schema_version"
_REPLACES: Final = b"qb_cluster.replaces"
_NAME: Final = re.compile(r"(?:columns|(\d{20}))-[0-9a-f]{8}(r?)\.parquet")
_COLUMNS: Final = "columns"
"""A part without rows in each table: readers see its columns before anything has finished."""
_GROUP_ROWS: Final = 16_384
_RETRIES, _RETRY_S = 40, 0.05

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a table that is ours and whole.

    Attributes:
        name: of the file in the table's folder.
        rows: how many it has.
    """

    name: str
    rows: int

    @property
    def stamp(self) -> int | None:
        """When it was committed, in nanoseconds since 1970; ``None`` if it is in no commit."""
        return stamp_of(self.name)


def stamp_of(name: str) -> int | None:
    """Read the time of a part's commit from its name; ``None`` where it has none."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and match[1] else None


def new_name(stamp: int, *, is_replacing: bool = False) -> str:
    """Make a name for a part of a commit.

    Args:
        stamp: time of the commit, in nanoseconds since 1970.
        is_replacing: whether its metadata says that it replaces others.
    """
    return f"{stamp:020d}-{uuid.uuid4().hex[:8]}{'r' * is_replacing}.parquet"


def is_columns(name: str) -> bool:
    """Tell from a part's name whether it is the one without rows."""
    return name.startswith(f"{_COLUMNS}-") and _NAME.fullmatch(name) is not None


def is_replacing(name: str) -> bool:
    """Tell from a part's name whether its metadata says that it replaces others."""
    match = _NAME.fullmatch(name)
    return bool(match and match[2])


def renamed(name: str) -> str:
    """Make a new name for a part of the same time."""
    time_of, _, rest = name.partition("-")
    return f"{time_of}-{uuid.uuid4().hex[:8]}{rest[8:]}"


def make_table(folder: Folder, table: TableName) -> None:
    """Make a table, if it is missing, with a part of columns and no rows.

    It comes with that part in it: without a part there are no columns to read.

    Raises:
        OSError: it cannot be written.
    """
    if not folder.names(table):
        name = f"{_COLUMNS}-{uuid.uuid4().hex[:8]}.parquet"
        folder.exchange(table, {name: encoded(SCHEMAS[table].empty_table())}, (), renamed)


def encoded(rows: pa.Table) -> bytes:
    """Write rows as the content of a part."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def rewritten(
    folder: Folder,
    table: TableName,
    names: Sequence[str],
    *,
    without: Collection[str] = (),
    more: pa.Table | None = None,
) -> tuple[bytes, int]:
    """Write the rows of several parts as the content of one that replaces them.

    Holds a part of the rows at a time, and the whole of what comes out.

    Args:
        folder: the run folder.
        table: which table.
        names: the parts, in order of time.
        without: cells whose rows are left out.
        more: rows that come after these.

    Returns:
        The content, and how many rows it has.

    Raises:
        OSError, pyarrow.ArrowException: a part cannot be read.
    """
    replaces = {**SCHEMAS[table].metadata, _REPLACES: json.dumps(list(names)).encode()}
    schema = SCHEMAS[table].with_metadata(replaces)
    left_out = pa.array(without, pa.string())
    sink = pa.BufferOutputStream()
    count, held = 0, [schema.empty_table()]
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for rows in _row_groups(folder, table, names):
            kept = rows if not without else rows.filter(_is_not_in(rows["cell_id"], left_out))
            held.append(kept.cast(schema))
            count += len(kept)
            if sum(map(len, held)) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(held))
                held = [schema.empty_table()]
        if more is not None:
            held.append(more.cast(schema))
            count += len(more)
        writer.write_table(pa.concat_tables(held))
    return sink.getvalue().to_pybytes(), count


def entries(folder: Folder, table: TableName) -> list[str]:
    """List what a reader of the table's folder would open, parts in order of time.

    Raises:
        OSError: the folder cannot be read.
    """
    return [name for name in folder.names(table) if not name.startswith((".", "_"))]


def replaced(folder: Folder, table: TableName, names: Collection[str]) -> set[str]:
    """Find which of these files others of them replace."""
    found: set[str] = set()
    for name in names:
        if is_replacing(name):
            with (
                suppress(pa.ArrowException),  # damaged: told where it is read
                folder.open(f"{table}/{name}") as source,
            ):
                metadata = pq.read_metadata(source).metadata or {}
                found.update(json.loads(metadata.get(_REPLACES, b"[]")))
    return found.intersection(names)


def read_parts(
    folder: Folder, table: TableName, problems: list[str], columns: Sequence[str] | None = None
) -> Iterator[tuple[Part, pa.Table]]:
    """Read a table part by part, in order of time.

    What a part of an older layout has no column for is null.

    Args:
        folder: the run folder.
        table: which table.
        problems: gets a sentence for each file that is skipped because it is no part of ours.
        columns: which columns; ``None`` is all.

    Raises:
        FileNotFoundError: the driver has exchanged the parts meanwhile; see ``undisturbed``.
        StorageError: the object store fails.
    """
    names = entries(folder, table)
    gone = replaced(folder, table, names)
    for name in names:
        if name in gone:
            continue
        problem = ""
        try:
            with folder.open(f"{table}/{name}") as source, pq.ParquetFile(source) as file:
                problem = _mismatch(file.schema_arrow, table)
                rows = file.metadata.num_rows
                found = None if problem else _read(file, table, columns)
        except (FileNotFoundError, StorageError):
            raise
        except (OSError, pa.ArrowException) as error:
            # pyarrow tells of a damaged file by either, depending on where the damage is.
            found, problem = None, f"cannot be read ({str(error).splitlines()[0]})"
        if found is None:
            problems.append(
                f"{folder.folder(table)}/{name}: {problem}; skipped. Move it out of the folder: "
                "other Parquet readers will stumble over it"
            )
        else:
            yield Part(name, rows), found


def undisturbed(folder: Folder, read: Callable[[], T]) -> T:
    """Read again where the driver has exchanged the parts meanwhile.

    Raises:
        RunFolderError: a part is missing still after some tries.
    """
    for left in reversed(range(_RETRIES)):
        try:
            return read()
        except FileNotFoundError as error:
            if not left:
                raise RunFolderError(
                    f"{folder}: {error.filename or error} is missing; a driver was stopped while "
                    "it put parts together. Run `qb run` again: it puts them back"
                ) from error
            time.sleep(_RETRY_S)
    raise AssertionError


def _row_groups(folder: Folder, table: TableName, names: Sequence[str]) -> Iterator[pa.Table]:
    for name in names:
        with folder.open(f"{table}/{name}") as source, pq.ParquetFile(source) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, use_threads=False)


def _is_not_in(cell_ids: pa.ChunkedArray, left_out: pa.Array) -> Any:
    return pc.invert(pc.is_in(cell_ids, left_out))


def _read(file: pq.ParquetFile, table: TableName, columns: Sequence[str] | None) -> pa.Table:
    """Read columns of ours, whether the file has them or is too old to."""
    schema: pa.Schema = SCHEMAS[table].remove_metadata()
    fields = [field for field in schema if columns is None or field.name in columns]
    present = [field.name for field in fields if field.name in file.schema_arrow.names]
    found = file.read(present, use_threads=False)
    data = [
        _as_now(found[field.name], field)
        if field.name in present
        else pa.nulls(len(found), field.type)
        for field in fields
    ]
    return pa.table(data, schema=pa.schema(fields))


def _mismatch(schema: pa.Schema, table: TableName) -> str:
    version = (schema.metadata or {}).get(_VERSION, b"")
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        return f"has the newer layout {version.decode()}; this QuantBench knows {SCHEMA_VERSION}"
    ours = SCHEMAS[table]
    if version.isdigit() and int(version) < SCHEMA_VERSION:  # a layout only ever gains columns
        ours = pa.schema([_as_then(f, schema) for f in ours if f.name in schema.names])
    if not schema.equals(ours):
        return f"is no part of the table '{table}'"
    return ""


def _as_then(field: pa.Field, schema: pa.Schema) -> pa.Field:
    """Give a field as it may be in an older layout, where lists were text."""
    was = schema.field(field.name)
    is_joined = pa.types.is_list(field.type) and pa.types.is_string(was.type)
    return was if is_joined else field


def _as_now(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Take text of an older layout apart where there are lists now."""
    if column.type == field.type:
        return column
    between = "; " if field.name == "notes" else ","
    lists = [text if not text else text.split(between) for text in column.to_pylist()]
    values = pa.array([[] if one == "" else one for one in lists], pa.list_(pa.string()))
    return pa.chunked_array([values.cast(field.type)])
