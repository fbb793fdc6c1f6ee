"""The tables after the comparison: agreement of backends, decibels per bit, layers."""

from collections.abc import Iterator, Sequence
from typing import Final

import pandas as pd

from qb_cluster.report import cell_text
from qb_cluster.report.bits import DB_PER_BIT, BitSeries
from qb_cluster.report.cell_text import NOTHING, Row
from qb_cluster.report.comparison import CONDITIONS
from qb_cluster.report.records import by_place, columns, records, where
from qb_cluster.report.table import Table

_MOST_LAYERS: Final = 8


def agreement_tables(agreement: pd.DataFrame) -> Iterator[Table]:
    """Make a grid for each scheme: a row a model and pair of backends, a column a bit-width.

    Each pair once, and without the float baselines of other cells: the whole matrices are in
    ``agreement.parquet``.
    """
    is_own = (agreement["scheme"] == "float") | (
        (agreement["execution"] != "float") & (agreement["other_execution"] != "float")
    )
    for place, rows in by_place(records(agreement[is_own])).items():
        seen: set[tuple[str, str]] = set()
        by_scheme: dict[str, list[Row]] = {}
        for row in rows:
            if (row["other_cell_id"], row["cell_id"]) not in seen:
                seen.add((row["cell_id"], row["other_cell_id"]))
                by_scheme.setdefault(row["scheme"], []).append(row)
        for scheme, pairs in sorted(by_scheme.items(), key=lambda item: item[0] != "float"):
            yield _agreement_grid(f"{scheme} · agreement of backends · {where(place)}", pairs)


def _agreement_grid(title: str, pairs: Sequence[Row]) -> Table:
    widths = columns(pairs)
    slots: dict[str, dict[str, list[Row]]] = {}
    for row in pairs:
        label = f"{row['model']}\n{row['backend']} · {row['other_backend']}"
        by_bits = slots.setdefault(label, {})
        by_bits.setdefault(row["bits"], []).append(row)
    rows = (
        (
            label,
            *(
                cell_text.slot(by_bits[bits], cell_text.pair) if bits in by_bits else NOTHING
                for bits in widths
            ),
        )
        for label, by_bits in slots.items()
    )
    return Table(title, ("model\nbackends", *widths), tuple(rows), is_grid=True)


def bits_tables(series: Sequence[BitSeries]) -> Iterator[Table]:
    """Make a table of fitted slopes, one row a series."""
    places: dict[tuple[str, str, str, int], list[BitSeries]] = {}
    for one in series:
        places.setdefault((one.dataset, one.metric, one.device, one.threads), []).append(one)
    for place, group in places.items():
        rows = tuple((one.model, one.label, *_fit_text(one)) for one in group)
        yield Table(
            f"SQNR gained per bit · {where(place)}",
            ("model", "series", "dB per bit", "law", "fitted over", "measured"),
            rows,
        )


def _fit_text(one: BitSeries) -> tuple[str, str, str, str]:
    law, measured = f"{DB_PER_BIT:.2f}", f"{one.bits[0]}–{one.bits[-1]} bits"
    if one.fit is None:
        return "no line", law, NOTHING, measured
    slope = f"{one.fit.db_per_bit:.2f} ± {one.fit.stderr:.2f}"
    return slope, law, f"{one.fit.low}–{one.fit.high} bits", measured


def layers_tables(layers: pd.DataFrame) -> Iterator[Table]:
    """Make a table for each model, backend, scheme and calibration, the worst layers first."""
    by_title: dict[str, dict[str, list[Row]]] = {}
    for place, rows in by_place(records(layers)).items():
        for row in rows:
            names = [row["model"], row["backend"], row["scheme"], *_conditions(row)]
            title = f"layers of {' · '.join(names)} · {where(place)}"
            by_title.setdefault(title, {}).setdefault(row["cell_id"], []).append(row)
    header = ("bits", "layer", "weights", "MACs", "only it", "all but it")
    for title, cells in by_title.items():
        lines = tuple(line for rows in cells.values() for line in _layer_lines(rows))
        yield Table(title, (*header, "weight", "expected", "excess"), lines)


def _conditions(row: Row) -> list[str]:
    names = (name for name in CONDITIONS if name.startswith("calibration_"))
    return [f"{n.removeprefix('calibration_')} {row[n]}" for n in names if row[n] is not None]


def _layer_lines(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    parameters, macs = (str(sum(row[name] for row in rows)) for name in ("parameters", "macs"))
    everything = cell_text.decibels(rows[0]["all_sqnr_db"]) or NOTHING
    blank = (NOTHING,) * 4
    yield rows[0]["bits"], "all", parameters, macs, everything, *blank
    for row in rows[:_MOST_LAYERS]:
        ratios = (
            "only_sqnr_db",
            "all_but_sqnr_db",
            "weight_sqnr_db",
            "expected_weight_sqnr_db",
        )
        yield (
            row["layer_bits"],
            row["layer"],
            str(row["parameters"]),
            str(row["macs"]),
            *(cell_text.decibels(row[name]) or NOTHING for name in ratios),
            NOTHING if row["excess_db"] is None else f"{row['excess_db']:+.1f} dB",
        )
    if len(rows) > _MOST_LAYERS:
        more = f"… {len(rows) - _MOST_LAYERS} more, in `layers`"
        yield rows[0]["bits"], more, "", "", "", "", "", "", ""
