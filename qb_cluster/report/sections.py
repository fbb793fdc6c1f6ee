"""The tables after the comparison: devices, agreement of backends, decibels per bit, layers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pandas as pd

from qb_cluster.report import cell_text
from qb_cluster.report.bits import DB_PER_BIT, BitSeries
from qb_cluster.report.cell_text import NOTHING
from qb_cluster.report.comparison import CONDITIONS
from qb_cluster.report.records import (
    Device,
    Place,
    Row,
    by_place,
    columns,
    device_names,
    is_baseline,
    records,
    where,
)
from qb_cluster.report.table import Table

_MOST_LAYERS: Final = 8

_Heading = tuple[bool, str]
"""Whether rows are quantized, so that float baselines come first, and their scheme."""


def agreement_tables(agreement: pd.DataFrame) -> Iterator[Table]:
    """Make a grid for each scheme: a row a model and pair of backends, a column a bit-width.

    A backend is named with its device where there are several. Each pair once, and without the
    float baselines of other cells: the whole matrices are in ``agreement.parquet``.
    """
    is_own = agreement["is_baseline"] | (
        (agreement["execution"] != "float") & (agreement["other_execution"] != "float")
    )
    for (dataset, _), rows in _by_data(records(agreement[is_own])).items():
        names = device_names(_device(row) for row in rows)
        if len(names) == 1:
            names = {}
            title = f"agreement of backends · {where(_place(rows[0]))}"
        else:
            title = f"agreement of backends and devices · {dataset}"
        seen: set[tuple[str, str]] = set()
        by_scheme: dict[_Heading, list[Row]] = {}
        for row in rows:
            if (row["other_cell_id"], row["cell_id"]) not in seen:
                seen.add((row["cell_id"], row["other_cell_id"]))
                heading = not row["is_baseline"], row["scheme"]
                by_scheme.setdefault(heading, []).append(row)
        for (_, scheme), pairs in sorted(by_scheme.items(), key=lambda item: item[0][0]):
            yield _agreement_grid(f"{scheme} · {title}", pairs, names)


def _agreement_grid(title: str, pairs: Sequence[Row], names: Mapping[Device, str]) -> Table:
    widths = columns(pairs)
    slots: dict[str, dict[str, list[Row]]] = {}
    for row in pairs:
        ours, theirs = _member(row, names), _member(row, names, "other_")
        label = f"{row['model']}\n{ours} · {theirs}"
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


def _member(row: Row, names: Mapping[Device, str], prefix: str = "") -> str:
    backend = str(row[f"{prefix}backend"])
    return f"{backend} @ {names[_device(row, prefix)]}" if names else backend


def devices_tables(devices: pd.DataFrame) -> Iterator[Table]:
    """Make a table of the devices, then a grid for each scheme, float first: a column a device.

    Lines without a number on any device are left out.
    """
    rows = records(devices)
    if not rows:
        return
    yield _device_list(rows)
    for (dataset, metric), cells in sorted(_by_data(rows).items()):
        names = device_names(_device(row) for row in cells)
        if len(names) == 1:
            continue
        by_scheme: dict[_Heading, list[Row]] = {}
        for row in cells:
            by_scheme.setdefault((not is_baseline(row), row["scheme"]), []).append(row)
        for (_, scheme), group in sorted(by_scheme.items(), key=lambda item: item[0]):
            title = f"{scheme} · {metric} and latency by device · {dataset}"
            grid = _devices_grid(title, group, names)
            if grid.rows:
                yield grid


def _device_list(rows: Sequence[Row]) -> Table:
    """List what each device is, as far as its cells said."""
    names = device_names(_device(row) for row in rows)
    facts = ("host", "arch", "board", "accelerator", "runtime")
    lines = []
    for device, name in names.items():
        cells = [row for row in rows if _device(row) == device]
        told = (sorted({str(row[fact]) for row in cells if row[fact]}) for fact in facts)
        threads = str(device[1])
        lines.append((name, threads, *("\n".join(t) or NOTHING for t in told), str(len(cells))))
    header = ("device", "threads", *facts, "cells")
    return Table("devices", header, tuple(lines))


def _devices_grid(title: str, cells: Sequence[Row], names: Mapping[Device, str]) -> Table:
    """Make a table with a row a model, backend and bit-width, and a column a device."""
    slots: dict[str, dict[Device, list[Row]]] = {}
    for row in cells:
        bits = "" if is_baseline(row) else f" {row['bits']}"
        by_device = slots.setdefault(f"{row['model']}\n{row['backend']}{bits}", {})
        by_device.setdefault(_device(row), []).append(row)
    rows = (
        (
            label,
            *(
                cell_text.slot(by_device[device], cell_text.on_device)
                if device in by_device
                else NOTHING
                for device in names
            ),
        )
        for label, by_device in slots.items()
        if any(row["value"] is not None for group in by_device.values() for row in group)
    )
    return Table(title, ("model\nbackend", *names.values()), tuple(rows), is_grid=True)


def _device(row: Row, prefix: str = "") -> Device:
    return row[f"{prefix}device"], row[f"{prefix}threads"]


def _place(row: Row) -> Place:
    return row["dataset"], row["metric"], row["device"], row["threads"]


def _by_data(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group rows by dataset and metric, whatever the device, in order of appearance."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["metric"]), []).append(row)
    return found


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
