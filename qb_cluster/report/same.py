"""Cells whose outputs are another cell's, to the bit, and axes of a sweep that changed nothing.

Outputs are compared by the digest under which the run folder keeps them (``outputs_digest``); cells
whose outputs were too large to keep are the same as none. Artifacts are not compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qb_cluster.contracts.calibration import Calibration
from qb_cluster.contracts.cell import MEASURED
from qb_cluster.report import verdicts
from qb_cluster.report.records import Row, are_baselines, is_baseline, records
from qb_cluster.report.table import Table

AXES: Final = ("scheme", "bits", "calibration")
"""Axes that are there to change the outputs. That two devices give the same is no finding."""

_RUNS_ON: Final = ["model", "dataset", "backend", "device", "threads"]
_KIND: Final = ["backend", "execution"]
_LIKE: Final = (*_RUNS_ON, "metric", "execution", "batch_size", "examples", *AXES)
_CALIBRATION: Final = [
    f"calibration_{name}" for name in ("samples", "seed", "observer", "percentile")
]
_USUAL: Final = Calibration().observer
_MOST_NAMED: Final = 2
_MOST_LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Values of an axis that gave what another value of it gives, wherever both ran.

    Attributes:
        axis: of ``AXES``.
        values: of the axis.
        same_as: the value whose outputs they gave.
        pairs: of cells that differ in this axis alone; the outputs of all are equal to the bit.
        where: what the cells of the pairs have in common, such as ``tflite static w8a8``.
    """

    axis: str
    values: tuple[str, ...]
    same_as: str
    pairs: int
    where: tuple[str, ...]

    def line(self) -> str:
        """Say it in one line."""
        more = ", …" if len(self.where) > _MOST_NAMED else ""
        return (
            f"{self.axis}: {', '.join(self.values)} gave the same outputs as {self.same_as}, bit "
            f"for bit, in {self.pairs:,} of {self.pairs:,} pair{'' if self.pairs == 1 else 's'} "
            f"({', '.join(self.where[:_MOST_NAMED])}{more})"
        )


def same_as(cells: pd.DataFrame) -> pd.Series:
    """Name the first cell that gave the same outputs on the same device.

    Args:
        cells: rows of ``results``, in the order of the report.

    Returns:
        For each row the ``cell_id`` of the first cell of the same model, dataset, backend and
        device whose outputs are the same to the bit; float models come before all others. Null
        for that cell itself, and where there is none.
    """
    known = cells[cells["outputs_digest"].notna()]
    known = known.loc[are_baselines(known).sort_values(ascending=False, kind="stable").index]
    groups = known.groupby([*_RUNS_ON, "outputs_digest"], dropna=False, sort=False)
    first = groups["cell_id"].transform("first")
    return first.mask(first == known["cell_id"]).reindex(cells.index)


def unchanged(cells: pd.DataFrame, outputs: pd.Series) -> tuple[Unchanged, ...]:
    """Find the axes that changed nothing.

    A value of an axis is found where a backend gives the same outputs for it as for another value
    in every pair of its cells that differ in this axis alone. Cells that were not measured do not
    count, and neither do those that gave the float model's outputs: they say so themselves.

    Args:
        cells: the comparison, with ``same_as``.
        outputs: ``outputs_digest`` by ``cell_id``.
    """
    floats = cells.loc[are_baselines(cells), "cell_id"]
    counts = cells["status"].isin(MEASURED) & ~are_baselines(cells)
    counts &= ~cells["same_as"].isin(set(floats))
    if not (counts & cells["same_as"].notna()).any():
        return ()
    kept = cells[counts].assign(outputs=lambda found: found["cell_id"].map(outputs))
    kept = kept[kept["outputs"].notna()]
    kept = kept.assign(calibration=_calibrations(kept))
    return tuple(found for axis in AXES for found in _unchanged_along(axis, kept))


def tables(cells: pd.DataFrame, found: Sequence[Unchanged]) -> Iterator[Table]:
    """List axes that changed nothing, then cells that are the same as another."""
    if found:
        lines = [
            (one.axis, "\n".join(one.values), one.same_as, f"{one.pairs:,}", "\n".join(one.where))
            for one in found
        ]
        yield Table(
            "axes that changed nothing",
            ("axis", "value", "same outputs as", "pairs", "where"),
            tuple(lines),
        )
    alike = cells[cells["same_as"].notna()]
    if alike.empty:
        return
    involved = cells[cells["cell_id"].isin({*alike["cell_id"], *alike["same_as"]})]
    names = {row["cell_id"]: _name(row) for row in records(involved)}
    listed = [
        (row["model"], names[row["cell_id"]], names[row["same_as"]])
        for row in records(alike.iloc[:_MOST_LISTED])
    ]
    if len(alike) > _MOST_LISTED:
        listed.append(("…", f"{len(alike) - _MOST_LISTED:,} more", "in the column `same_as`"))
    yield Table(
        "outputs that are the same, bit for bit",
        ("model", "configuration", "same outputs as"),
        tuple(listed),
    )


def _unchanged_along(axis: str, cells: pd.DataFrame) -> Iterator[Unchanged]:
    order = {value: number for number, value in enumerate(_in_order(cells[axis]))}
    others = [name for name in _LIKE if name != axis]
    pairs = _pairs(
        pd.DataFrame(
            {
                "group": cells.groupby(others, dropna=False, sort=False).ngroup(),
                "value": cells[axis].map(order),
                "kind": cells.groupby(_KIND, dropna=False, sort=False).ngroup(),
                "outputs": cells["outputs"],
                "cell_id": cells["cell_id"],
            }
        )
    )
    in_all = pairs.groupby(["kind", "value_of_other", "value"])["is_same"].transform("all")
    pairs = pairs[in_all]
    # Of three that are the same, the third is the first's, and not the second's as well.
    earliest = pairs.groupby(["kind", "value"])["value_of_other"].transform("min")
    pairs = pairs[pairs["value_of_other"] == earliest]
    rows = {row["cell_id"]: row for row in records(cells[cells["cell_id"].isin(pairs["cell_id"])])}
    named = list(order)
    for other in sorted(pairs["value_of_other"].unique()):
        alike = pairs[pairs["value_of_other"] == other]
        values = tuple(named[value] for value in sorted(alike["value"].unique()))
        where = dict.fromkeys(_common(rows[cell_id], axis) for cell_id in alike["cell_id"])
        yield Unchanged(axis, values, named[other], len(alike), tuple(where))


def _pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """Give the pairs within groups whose values were the same somewhere, the later one's columns.

    A pair of values that never gave the same is left out before all its pairs are made.
    """
    keys = ["group", "outputs"]
    twice = cells[cells.duplicated(keys, keep=False)]
    same = _joined(twice, keys)[["kind", "value_of_other", "value"]].drop_duplicates()
    values = {*same["value"], *same["value_of_other"]}
    near = cells[cells["value"].isin(values) & cells["kind"].isin(set(same["kind"]))]
    pairs = _joined(near, ["group"]).merge(same, on=["kind", "value_of_other", "value"])
    return pairs.assign(is_same=pairs["outputs"] == pairs["outputs_of_other"])


def _joined(cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    others = cells[list(dict.fromkeys([*keys, "value", "outputs"]))]
    both = cells.merge(others, on=keys, suffixes=("", "_of_other"))
    return both[both["value_of_other"] < both["value"]]


def _in_order(values: pd.Series) -> list[str]:
    """Give the values of an axis, those of the usual observer before others."""
    return sorted(values.unique(), key=lambda value: value.partition("[")[0] != _USUAL)


def _calibrations(cells: pd.DataFrame) -> pd.Series:
    numbers = cells.groupby(_CALIBRATION, dropna=False, sort=False).ngroup()
    firsts = records(cells[~numbers.duplicated()])
    labels = [verdicts.labels_of(row)["calibration"] for row in firsts]
    return numbers.map(dict(zip(numbers[~numbers.duplicated()], labels, strict=True)))


def _common(row: Row, axis: str) -> str:
    named: Mapping[str, str] = {name: row[name] for name in ("backend", "scheme", "bits")}
    words = [word for name, word in named.items() if name != axis]
    return " ".join([*words, *(["simulated"] if row["execution"] == "simulated" else [])])


def _name(row: Row) -> str:
    if is_baseline(row):
        return f"{row['backend']} float"
    label = verdicts.labels_of(row)["calibration"]
    return " ".join([_common(row, ""), *([] if row["calibration_observer"] is None else [label])])
