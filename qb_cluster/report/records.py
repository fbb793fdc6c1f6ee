"""Rows of a table as plain mappings, grouped by where they were measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from qb_cluster.store.tables import RESULTS

Row = Mapping[str, Any]
"""A row of results or of the comparison, with ``None`` for null."""

LISTS: Final = frozenset(column.name for column in RESULTS if pa.types.is_list(column.type))
"""Columns of the table ``results`` that hold lists."""

Place = tuple[str, str, str, int]
"""Dataset, metric, device, threads: cells that differ in one of these never share a table."""

Device = tuple[str, int]
"""Name and threads: one name with other threads is another device."""


def records(cells: pd.DataFrame) -> list[Row]:
    """Give rows as mappings, with ``None`` for null."""
    # Five times as fast as pandas' own way, and a report asks often.
    return list[Row](pa.Table.from_pandas(cells, preserve_index=False).to_pylist())


def is_baseline(row: Row) -> bool:
    """Tell whether a row is a float baseline: by its id, since a label can be any word."""
    return bool(row["cell_id"] == row["baseline_cell_id"])


def are_baselines(cells: pd.DataFrame) -> pd.Series:
    """Tell of each row of a table whether it is a float baseline."""
    return cells["cell_id"] == cells["baseline_cell_id"]


def notes_of(row: Row) -> list[str]:
    """Give the notes of a row of results or of the comparison."""
    return list(row["notes"] or ())


def with_lists_as_text(cells: pd.DataFrame) -> pd.DataFrame:
    """Give a table whose lists are text, their members apart by "; ", for what knows no lists."""
    found = cells.copy()
    for name in cells.columns.intersection(list(LISTS)):
        found[name] = cells[name].map(list_as_text, na_action="ignore").astype("str")
    return found


def list_as_text(members: Iterable[Any]) -> str:
    """Write a list in one line."""
    return "; ".join(map(str, members))


def by_place(cells: Sequence[Row]) -> dict[Place, list[Row]]:
    """Group rows by place, in order of appearance."""
    places: dict[Place, list[Row]] = {}
    for row in cells:
        place = row["dataset"], row["metric"], row["device"], row["threads"]
        places.setdefault(place, []).append(row)
    return places


def where(place: Place) -> str:
    """Name a place in a title."""
    dataset, _, device, threads = place
    return f"{dataset} on {device}, {threads} thread{'' if threads == 1 else 's'}"


def device_names(devices: Iterable[Device]) -> dict[Device, str]:
    """Name devices in as few words as tell them apart.

    Args:
        devices: names and threads; may repeat.

    Returns:
        By name and threads, sorted: the name, with the threads where the name has several.
    """
    known = sorted(set(devices))
    names = [name for name, _ in known]
    return {
        (name, threads): name if names.count(name) == 1 else f"{name}[threads={threads}]"
        for name, threads in known
    }


def columns(cells: Sequence[Row]) -> list[str]:
    """Give the bit-widths that occur, widest first."""
    widths = {row["bits"]: (row["weight_bits"], row["activation_bits"]) for row in cells}
    return sorted(widths, key=lambda bits: widths[bits], reverse=True)
