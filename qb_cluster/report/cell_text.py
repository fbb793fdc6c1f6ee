"""How numbers read in a report."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.filesize import decimal

from qb_cluster.report.comparison import CONDITIONS

FLAG: Final = "†"
NOTHING: Final = "–"
_TIME_UNITS: Final = (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9))
_ACCURACY: Final = "accuracy"

_SHORT: Final = {"undecided": "?", "equivalent": "same"}

Row = Mapping[str, Any]
"""A row of results or of the comparison, with ``None`` for null."""


def unit(metric: str) -> str:
    """Name a metric with the unit that its changes are given in."""
    return "accuracy in points" if metric == _ACCURACY else metric


def value(row: Row, metric: str) -> str:
    """Give a cell's own metric, or its status where there is none."""
    if row["status"] != "ok" or row["value"] is None:
        return str(row["status"])
    return f"{row['value']:.2%}" if metric == _ACCURACY else f"{row['value']:.4g}"


def duration(nanoseconds: float | None) -> str:
    """Give a time with three digits and a fitting unit; nothing where there is none."""
    if nanoseconds is None:
        return ""
    name, factor = next(
        ((name, factor) for name, factor in _TIME_UNITS if nanoseconds / factor < 999.5),
        _TIME_UNITS[-1],
    )
    return f"{_three_digits(nanoseconds / factor)} {name}"


def size(n_bytes: int | None) -> str:
    """Give a size with a fitting unit; nothing where there is none."""
    return "" if n_bytes is None else decimal(n_bytes)


def interval(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """Give an interval; nothing where there is none."""
    return "" if low is None or high is None else f"[{form(low)}, {form(high)}]"


def decibels(number: float | None) -> str:
    """Give a level in decibels; nothing where there is none."""
    if number is None:
        return ""
    return f"{number:.1f} dB" if math.isfinite(number) else "equal" if number > 0 else "-∞ dB"


def pair(row: Row) -> str:
    """Give the agreement of two cells: share of equal classes, and SQNR."""
    agreement = row["top1_agreement"]
    share = "" if agreement is None else f"{agreement:.1%}"
    known = [text for text in (share, decibels(row["sqnr_db"])) if text] or ["not comparable"]
    simulated = (row["execution"], row["other_execution"]).count("simulated")
    return "\n".join([*known, *{1: ["sim"], 2: ["both sim"]}.get(simulated, [])])


def ratio(number: float) -> str:
    """Give a ratio with two decimals."""
    return f"{number:.2f}"


def slot(rows: Sequence[Row], form: Callable[[Row], str]) -> str:
    """Give what stands in one place of a grid: mostly one cell, in the form asked for.

    Where there are more, as after a sweep has grown by other calibration seeds, each is headed
    by what sets it apart.
    """
    if len(rows) == 1:
        return form(rows[0])
    apart = [name for name in CONDITIONS if len({str(row.get(name)) for row in rows}) > 1]
    return "\n".join(
        line
        for row in rows
        for line in (
            *(
                f"{name.removeprefix('calibration_')} {row[name]}:"
                for name in apart
                if row.get(name) is not None
            ),
            *(() if apart else (f"{row['cell_id']}:",)),
            form(row),
        )
    )


def cell(row: Row) -> str:
    """Give one comparison: change, interval, flips, size, speed; or the status.

    A kernel that computes something else has no change: its status and both SQNRs instead.
    """
    if row["status"] == "kernel_mismatch":
        ratios = (("SQNR", row["sqnr_db"]), ("sim", row["reference_sqnr_db"]))
        known = [f"{name} {decibels(ratio)}" for name, ratio in ratios if ratio is not None]
        return "\n".join([str(row["status"]), *known])
    if row["status"] != "ok":
        return str(row["status"])
    lines = [*_change(row), *_flips(row)]
    if row["execution"] == "simulated":
        return "\n".join([*lines, "sim"])
    if row["size_ratio"] is not None:
        lines.append(f"size {_three_digits(row['size_ratio'])}x")
    return "\n".join([*lines, *_speed(row)])


def on_device(row: Row) -> str:
    """Give what one device made of a cell: metric, change, latency, speed-up; or the status."""
    if row["status"] != "ok":
        return cell(row)
    lines = [value(row, row["metric"])]
    is_float = row["scheme"] == "float"
    if not is_float:
        lines += _change(row)[:1]
    if row["execution"] == "simulated":
        return "\n".join([*lines, "sim"])
    if row["latency_median_ns"] is not None:
        lines.append(duration(row["latency_median_ns"]))
    if not is_float:
        lines += _speed(row)[:1]
    return "\n".join(lines)


def _change(row: Row) -> list[str]:
    if row["delta"] is None:
        return ["no change known"]
    is_accuracy = row["metric"] == _ACCURACY

    def form(change: float) -> str:
        return _points(100 * change) if is_accuracy else f"{change:+.3g}"

    reach = interval(row["delta_low"], row["delta_high"], form)
    return [f"{form(row['delta'])} {_verdict(row['quality_verdict'])}", reach or "no interval"]


def _flips(row: Row) -> list[str]:
    if row["flips_worse"] is None or row["flips_better"] is None:
        return []
    return [f"flips {row['flips_worse']}/{row['flips_better']}"]


def _speed(row: Row) -> list[str]:
    if row["speedup"] is None:
        return []
    flag = FLAG if row["latency_flags"] else ""
    speed = f"{_three_digits(row['speedup'])}x {_verdict(row['speedup_verdict'])}{flag}"
    reach = interval(row["speedup_low"], row["speedup_high"], ratio)
    return [speed, reach] if reach else [speed]


def _verdict(word: str) -> str:
    return _SHORT.get(word, word)


def _three_digits(number: float) -> str:
    """Write 1.23, 12.3, 123, and 1234: never an exponent."""
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def _points(points: float) -> str:
    sign = "+" if points > 0 else "-" if points < 0 else ""
    return sign + _three_digits(abs(points))
