"""How numbers read in a report: as many digits as they carry, ratios from 1 up with a word."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from rich.filesize import decimal

from qb_cluster.report.comparison import CONDITIONS, POINTS
from qb_cluster.report.records import Row, is_baseline

FLAG: Final = "†"
NOTHING: Final = "–"
TIME_UNITS: Final = (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9))
_MANY: Final = 1_000  # examples: one of them is then a tenth of a point or less
_PUZZLING_BITS: Final = 0.75  # stored beyond those asked for, before a size needs a word


def unit(row: Row) -> str:
    """Name a metric with the unit that its changes are given in."""
    return f"{row['metric']} in points" if row["metric_unit"] == POINTS else str(row["metric"])


def value(row: Row) -> str:
    """Give a cell's own metric, or its status where there is none."""
    if row["status"] != "ok" or row["value"] is None:
        return str(row["status"])
    return f"{_points(row['value'], row)}%" if _in_points(row) else f"{row['value']:.4g}"


def change(number: float, row: Row) -> str:
    """Give a change of a cell's metric, with its sign, in the unit of ``unit``."""
    if not _in_points(row):
        return f"{number:+.3g}"
    text = _points(abs(number), row, coarse_from=9.95)
    return text if float(text) == 0 else f"{'+' if number > 0 else '-'}{text}"


def duration(nanoseconds: float | None) -> str:
    """Give a time with three digits and a fitting unit; nothing where there is none."""
    if nanoseconds is None:
        return ""
    name, factor = next(
        ((name, factor) for name, factor in TIME_UNITS if nanoseconds / factor < 999.5),
        TIME_UNITS[-1],
    )
    return f"{_three_digits(nanoseconds / factor)} {name}"


def size(n_bytes: int | None) -> str:
    """Give a size with a fitting unit; nothing where there is none."""
    return "" if n_bytes is None else decimal(n_bytes)


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


def times(number: float) -> str:
    """Give a ratio with two digits, three near 1: ``1.04×``, ``3.3×``, ``12×``."""
    return f"{number:.{2 if number < 1.095 else 1 if number < 9.95 else 0}f}×"


def short_size(ratio: float) -> str:
    """Give float bytes ÷ quantized bytes as a ratio from 1 up with a word."""
    return f"{times(max(ratio, 1 / ratio))} {'smaller' if ratio >= 1 else 'larger'}"


def speed(row: Row) -> str:
    """Give a speed-up as a ratio from 1 up with a word; nothing where nothing was timed."""
    if row["speedup"] is None:
        return ""
    flag = FLAG if row["latency_flags"] else ""
    if row["speedup_verdict"] == "equivalent":
        return f"same speed{flag}"
    word = "faster" if row["speedup"] >= 1 else "slower"
    unclear = "?" if row["speedup_verdict"] == "undecided" else ""
    return f"{times(max(row['speedup'], 1 / row['speedup']))} {word}{unclear}{flag}"


def short_speed(row: Row) -> str:
    """Give a speed-up without its flags; ``unclear`` where it is undecided."""
    if row["speedup_verdict"] in {"undecided", "equivalent"}:
        return {"undecided": "unclear", "equivalent": "same speed"}[row["speedup_verdict"]]
    return speed(row).removesuffix(FLAG)


def noise(row: Row) -> str:
    """Give half the width of a speed-up's interval in percent; nothing where there is none."""
    low, high = row["speedup_low"], row["speedup_high"]
    return "" if low is None or high is None else _plus_minus(math.sqrt(high / low))


def own_noise(row: Row) -> str:
    """Give how far a float model timed against itself may be from 1; ``!`` where it is."""
    low, high = row["speedup_low"], row["speedup_high"]
    if low is None or high is None:
        return ""
    mark = " !" if is_biased(row) else ""
    return f"{_plus_minus(max(high, 1 / low))}{mark}"


def is_biased(row: Row) -> bool:
    """Tell whether a float model is told from itself: then small speed-ups mean nothing."""
    low, high = row["speedup_low"], row["speedup_high"]
    return low is not None and high is not None and not low <= 1 <= high


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
    """Give one comparison: change, verdict, interval, flips, size, speed; or the status.

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
        smaller = short_size(row["size_ratio"]).removesuffix(" smaller")
        lines.append(f"size {smaller}{_stored(row)}")
    return "\n".join([*lines, *_speed(row)])


def on_device(row: Row) -> str:
    """Give what one device made of a cell: metric, change, latency, speed-up; or the status."""
    if row["status"] != "ok":
        return cell(row)
    lines = [value(row)]
    is_float = is_baseline(row)
    if not is_float:
        lines += _change(row)[:1]
    if row["execution"] == "simulated":
        return "\n".join([*lines, "sim"])
    if row["latency_median_ns"] is not None:
        lines.append(duration(row["latency_median_ns"]))
    if not is_float:
        lines += _speed(row)
    return "\n".join(lines)


def reach(row: Row) -> str:
    """Give the interval of a change, without brackets; nothing where there is none."""
    low, high = row["delta_low"], row["delta_high"]
    if low is None or high is None:
        return ""
    return f"{change(low, row)}…{change(high, row).removeprefix('+')}"


def _in_points(row: Row) -> bool:
    return bool(row["metric_unit"] == POINTS)


def _points(number: float, row: Row, coarse_from: float = math.inf) -> str:
    """Write points or percent no finer than one example: so many digits n can carry."""
    n = row["examples"]
    digits = 2 if n is not None and n >= _MANY else 1
    return f"{number:.{digits - (number >= coarse_from)}f}"


def _change(row: Row) -> list[str]:
    if row["delta"] is None:
        return ["no change known"]
    verdict = "partial" if row["is_partial"] else row["quality_verdict"] or ""
    first = f"{change(row['delta'], row)} {verdict}".rstrip()
    return [first, f"[{reach(row)}]" if reach(row) else "no interval"]


def _flips(row: Row) -> list[str]:
    if row["flips_worse"] is None or row["flips_better"] is None:
        return []
    return [f"flips: {row['flips_worse']} lost, {row['flips_better']} gained"]


def _stored(row: Row) -> str:
    """Say in how many bits weights lie where that is not what was asked for."""
    stored, asked = row["bits_per_weight"], row["weight_bits"]
    if stored is None or abs(stored - asked) < _PUZZLING_BITS:
        return ""
    return f" ({stored:.1f} bits stored)"


def _speed(row: Row) -> list[str]:
    text = speed(row)
    return [f"{text} {noise(row)}".rstrip()] if text else []


def _plus_minus(factor: float) -> str:
    return f"±{max(1, math.ceil(100 * (factor - 1) - 1e-9))} %"


def _three_digits(number: float) -> str:
    """Write 1.23, 12.3, 123, and 1234: never an exponent."""
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
