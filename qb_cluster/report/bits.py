"""Quality against bit-width: one series a scheme, and how many decibels a bit is worth in it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qb_cluster.contracts.cell import MEASURED
from qb_cluster.report import cell_text
from qb_cluster.report.comparison import CONDITIONS, in_order
from qb_cluster.report.records import Row, are_baselines, records

DB_PER_BIT: Final = float(20 * np.log10(2))
"""6.02: a bit more halves the step of a uniform quantizer, and so the amplitude of its noise."""

FEWEST_WIDTHS: Final = 3
FEWEST_FITTED: Final = 4
"""Three points at 2–4 bits lie near some line whatever the law."""
MOST_RESIDUAL_DB: Final = 3.0
"""A factor of two in the noise: each width rounds the same few weights anew, so that the SQNR of
a small model scatters by a decibel or two about its line."""
LEAST_GAIN_DB: Final = DB_PER_BIT / 2

_PLACE: Final = ("dataset", "metric", "device", "threads", "model")
_GROUP: Final = (
    *_PLACE,
    "backend",
    "scheme",
    *(name for name in CONDITIONS if name not in {"execution", "examples"}),
)
_NEEDED: Final = (
    *_GROUP,
    "weight_bits",
    "activation_bits",
    "execution",
    "status",
    "value",
    "baseline_value",
    "sqnr_db",
    "quantized_share",
    "covered_share",
    "integer_layer_mac_share",
)
_FLOAT_BITS: Final = 32

_Place = tuple[str | int, ...]
"""Values of ``_PLACE``."""

_Line = tuple[dict[str, str], dict[int, Row], dict[int, Row], set[int]]
"""What may be in its label, its rows by the width that varies, those of partial cells likewise, and
widths that are missing."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A straight line through SQNR against bits.

    Attributes:
        db_per_bit: its slope.
        stderr: standard error of the slope.
        intercept_db: the line at zero bits.
        low, high: the bit-widths it was fitted over, both included.
    """

    db_per_bit: float
    stderr: float
    intercept_db: float
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class PartialPoint:
    """A cell that quantized only a part of what its scheme covers: no point of a line.

    Attributes:
        bits: the bit-width that varies.
        value: the metric.
        sqnr_db: NaN where unknown.
        words: how much it quantized, such as ``partial 27 %``.
    """

    bits: int
    value: float
    sqnr_db: float
    words: str


@dataclass(frozen=True, slots=True)
class BitSeries:
    """Cells that differ in one bit-width alone.

    Attributes:
        dataset, metric, device, threads, model: what all series in one picture share.
        label: what sets it apart from the others there.
        bits: the bit-width that varies, ascending, shape (n,); with those of partial cells at
            least 3.
        missing: bit-widths between them that were asked for and not had, shape (m,); those of
            partial cells are among them.
        partial: cells that quantized only a part, by ascending bits.
        value: the metric, shape (n,).
        baseline_value: the metric of the float model; NaN where unknown.
        sqnr_db: shape (n,); infinite where outputs are equal, NaN where unknown.
        simulated: whether each was simulated, shape (n,).
        fit: ``None`` where there is no stretch of four widths to fit, see ``fit_line``.
    """

    dataset: str
    metric: str
    device: str
    threads: int
    model: str
    label: str
    bits: NDArray[np.int64]
    missing: NDArray[np.int64]
    partial: tuple[PartialPoint, ...]
    value: NDArray[np.float64]
    baseline_value: float
    sqnr_db: NDArray[np.float64]
    simulated: NDArray[np.bool_]
    fit: Fit | None


def bit_series(results: pd.DataFrame) -> list[BitSeries]:
    """Find what was measured at three bit-widths or more, all else being equal.

    Where activations are quantized too, weights and activations of the same width make a series,
    and so do weights of any width with activations of one, and the reverse.

    Args:
        results: the table ``results``; cells that are neither ok nor partial do not count, and
            one of a series is ok.
    """
    cells = records(in_order(results[~are_baselines(results)])[list(_NEEDED)])
    found: dict[_Place, list[_Line]] = {}
    for group in _grouped(cells, _GROUP).values():
        for which, varied, asked in _lines(group):
            line = [row for row in asked if row["status"] in MEASURED]
            whole = {row[varied] for row in line if row["status"] == "ok"}
            missing = {row[varied] for row in asked} - whole
            twice = len({row[varied] for row in line}) < len(line)
            parts = _grouped(line, ["execution"]).items() if twice else [(("",), line)]
            for (execution,), part in parts:
                by_bits = {row[varied]: row for row in reversed(part) if row["status"] == "ok"}
                partial = {row[varied]: row for row in reversed(part) if row["status"] != "ok"}
                if by_bits and len(by_bits.keys() | partial.keys()) >= FEWEST_WIDTHS:
                    place = tuple(part[0][name] for name in _PLACE)
                    names = _parts(part[0], which, str(execution))
                    found.setdefault(place, []).append((names, by_bits, partial, missing))
    return [
        _series(_label(names, neighbours), by_bits, partial, missing)
        for neighbours in found.values()
        for names, by_bits, partial, missing in neighbours
    ]


def _grouped(cells: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by some columns, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in cells:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def fit_line(bits: NDArray[np.int64], sqnr_db: NDArray[np.float64]) -> Fit | None:
    """Fit a line to SQNR against bits, over the stretch where it is one.

    That is the longest run of at least four neighbouring widths in which, over any two steps, a
    bit gains at least half of 6.02 dB (below that, something else than this bit-width makes the
    noise) and no point is more than 3 dB off the line of least squares; of equally long ones the
    one with the smaller standard error.

    Args:
        bits: ascending, shape (n,).
        sqnr_db: shape (n,).

    Returns:
        ``None`` where there is no such stretch.
    """
    known = np.isfinite(sqnr_db)
    x, y = bits[known].astype(np.float64), sqnr_db[known]
    fits: list[tuple[int, float, Fit]] = []
    for first in range(len(x)):
        for end in range(first + FEWEST_FITTED, len(x) + 1):
            xs, ys = x[first:end], y[first:end]
            if np.any(ys[2:] - ys[:-2] < LEAST_GAIN_DB * (xs[2:] - xs[:-2])):
                break
            (slope, intercept), covariance = np.polyfit(xs, ys, 1, cov=True)
            if np.max(np.abs(ys - intercept - slope * xs)) <= MOST_RESIDUAL_DB:
                stderr = float(np.sqrt(covariance[0, 0]))
                ends = int(xs[0]), int(xs[-1])
                fits.append((len(xs), -stderr, Fit(float(slope), stderr, float(intercept), *ends)))
    return max(fits, key=lambda found: found[:2])[2] if fits else None


def _lines(group: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Cut cells of one scheme into lines in which one number varies: name the others, and it."""
    is_float = [row for row in group if row["activation_bits"] == _FLOAT_BITS]
    rest = [row for row in group if row["activation_bits"] != _FLOAT_BITS]
    lines = [
        ("", "weight_bits", is_float),
        ("w = a", "weight_bits", [r for r in rest if r["weight_bits"] == r["activation_bits"]]),
    ]
    for letter, fixed, varied in (
        ("a", "activation_bits", "weight_bits"),
        ("w", "weight_bits", "activation_bits"),
    ):
        by_width = _grouped(rest, [fixed])
        lines += [(f"{letter}{width[0]}", varied, by_width[width]) for width in sorted(by_width)]
    # Most are one cell: `w = a` is cut every way.
    yield from (line for line in lines if len(line[2]) >= FEWEST_WIDTHS)


def _parts(cell: Row, which: str, execution: str) -> dict[str, str]:
    """Give what may be in a series' label."""
    names = ("batch_size", "calibration_samples", "calibration_seed", "calibration_percentile")
    return {
        "backend": cell["backend"],
        "scheme": cell["scheme"],
        "which": which,
        "execution": execution,
        "calibration_observer": cell["calibration_observer"] or "",
        **{
            name: ""
            if cell[name] is None
            else f"{name.removeprefix('calibration_')} {cell[name]:g}"
            for name in names
        },
    }


def _label(parts: Mapping[str, str], neighbours: Sequence[_Line]) -> str:
    """Name the scheme, and whatever else sets this series apart."""
    return " · ".join(
        text
        for name, text in parts.items()
        if text
        and (
            name in {"scheme", "which"} or len({other[name] for other, *_ in neighbours} - {""}) > 1
        )
    )


def _partial(width: int, row: Row) -> PartialPoint:
    value, sqnr_db = (math.nan if row[n] is None else row[n] for n in ("value", "sqnr_db"))
    return PartialPoint(width, value, sqnr_db, cell_text.partial(row))


def _series(
    label: str, by_bits: Mapping[int, Row], partial: Mapping[int, Row], missing: set[int]
) -> BitSeries:
    bits = sorted(by_bits)
    line = [by_bits[width] for width in bits]
    value, sqnr_db = (
        np.array([row[name] for row in line], dtype=np.float64) for name in ("value", "sqnr_db")
    )
    first, widths = line[0], np.array(bits, dtype=np.int64)
    return BitSeries(
        first["dataset"],
        first["metric"],
        first["device"],
        first["threads"],
        first["model"],
        label,
        widths,
        np.array(sorted(w for w in missing if bits[0] < w < bits[-1]), dtype=np.int64),
        tuple(_partial(width, partial[width]) for width in sorted(partial)),
        value,
        np.nan if first["baseline_value"] is None else first["baseline_value"],
        sqnr_db,
        np.array([row["execution"] == "simulated" for row in line]),
        fit_line(widths, sqnr_db),
    )
