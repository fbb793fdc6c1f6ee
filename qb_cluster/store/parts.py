"""Parquet parts: written whole or not at all, read with suspicion.

A part is written aside in the run folder's ``.tmp``, which no reader of a table ever looks
into, synced, and renamed to its place; then the folder is synced. So whatever is in a table's
folder under a part's name is complete, at any moment, also after a power cut.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS, TableName

ASIDE: Final = ".tmp"
_VERSION: Final = b"qb_cluster.schema_version"


def part_path(run: Path, table: TableName, part: str) -> Path:
    """Give the place of a part of a table."""
    return run / table / f"{part}.parquet"


def write_part(run: Path, table: TableName, part: str, data: pa.Table) -> Path:
    """Put a new part into a table.

    The caller holds the run folder's lock, so looking before renaming is as good as a rename
    that refuses to replace; that one does not exist on every file system.

    Raises:
        FileExistsError: there is such a part already.
        OSError: it cannot be written, or not made to last.
    """
    place = part_path(run, table, part)
    if place.exists():
        raise FileExistsError(errno.EEXIST, "there is such a part already", str(place))
    replace_file(place, _encoded(data), aside=run / ASIDE / f"{table}-{part}")
    return place


def make_table(run: Path, table: TableName, part: str) -> None:
    """Make a table's folder, if it is missing, with a part of columns and no rows in it.

    The folder is renamed to its place, so that a reader never finds it empty: without a part
    there are no columns to read.

    Raises:
        OSError: it cannot be written, or not made to last.
    """
    if (run / table).exists():
        return
    folder = run / ASIDE / f"{table}-folder"
    folder.mkdir()
    content = _encoded(SCHEMAS[table].empty_table())
    replace_file(folder / f"{part}.parquet", content, aside=run / ASIDE / f"{table}-{part}")
    folder.rename(run / table)
    sync_folder(run)


def replace_file(place: Path, content: Any, *, aside: Path) -> None:
    """Write a file so that readers see the old one or the whole new one.

    Args:
        place: where it goes.
        content: bytes, or anything with the buffer protocol.
        aside: where it is written first, on the same file system.

    Raises:
        OSError: it cannot be written, or not made to last.
    """
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(place)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries(run: Path, table: TableName) -> list[Path]:
    """List what a reader of the table's folder would open, in order of time."""
    folder = run / table
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))


def read_parts(
    run: Path, table: TableName, problems: list[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read a table part by part, in order of time.

    What a part of an older layout has no column for is null.

    Args:
        run: the run folder.
        table: which table.
        problems: gets a sentence for each file that is skipped because it is no part of ours.
        columns: which columns; ``None`` is all.
    """
    for path in entries(run, table):
        problem = ""
        try:
            with pq.ParquetFile(path) as file:
                problem = _mismatch(file.schema_arrow, table)
                part = None if problem else _read(file, table, columns)
        except (OSError, pa.ArrowException) as error:
            # pyarrow tells of a damaged file by either, depending on where the damage is.
            part, problem = None, f"cannot be read ({str(error).splitlines()[0]})"
        if part is None:
            problems.append(
                f"{path}: {problem}; skipped. Move it out of the folder: other Parquet readers "
                "will stumble over it"
            )
        else:
            yield part


def _encoded(data: pa.Table) -> Any:
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, compression="zstd")
    return sink.getvalue()


def _read(file: pq.ParquetFile, table: TableName, columns: Sequence[str] | None) -> pa.Table:
    """Read columns of ours, whether the file has them or is too old to."""
    schema: pa.Schema = SCHEMAS[table].remove_metadata()
    fields = [field for field in schema if columns is None or field.name in columns]
    present = [field.name for field in fields if field.name in file.schema_arrow.names]
    found = file.read(present, use_threads=False)
    data = [
        found[field.name] if field.name in present else pa.nulls(len(found), field.type)
        for field in fields
    ]
    return pa.table(data, schema=pa.schema(fields))


def _mismatch(schema: pa.Schema, table: TableName) -> str:
    version = (schema.metadata or {}).get(_VERSION, b"")
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        return f"has the newer layout {version.decode()}; this QuantBench knows {SCHEMA_VERSION}"
    ours = SCHEMAS[table]
    if version.isdigit() and int(version) < SCHEMA_VERSION:  # a layout only ever gains columns
        ours = pa.schema([field for field in ours if field.name in schema.names])
    if not schema.equals(ours):
        return f"is no part of the table '{table}'"
    return ""
