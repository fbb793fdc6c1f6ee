"""Quality against bit-width: one series a scheme, and how many decibels a bit is worth in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qb_cluster.report.comparison import CONDITIONS, in_order

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
)
_FLOAT_BITS: Final = 32

_Place = tuple[str | int, ...]
"""Values of ``_PLACE``."""


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
class BitSeries:
    """Cells that differ in one bit-width alone.

    Attributes:
        dataset, metric, device, threads, model: what all series in one picture share.
        label: what sets it apart from the others there.
        bits: the bit-width that varies, ascending, shape (n,), n ≥ 3.
        missing: bit-widths between them that were asked for and not had, shape (m,).
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
        results: the table ``results``; cells that are not ok do not count.
    """
    cells = in_order(results[results["scheme"] != "float"])[list(_NEEDED)]
    found: dict[_Place, list[tuple[dict[str, str], pd.DataFrame, set[int]]]] = {}
    for _, group in cells.groupby(list(_GROUP), dropna=False, sort=False):
        for which, asked in _lines(group):
            line = asked[asked["status"] == "ok"]
            missing = set(asked["bits_varied"]) - set(line["bits_varied"])
            twice = line["bits_varied"].duplicated().any()
            for execution, part in line.groupby("execution") if twice else [("", line)]:
                if part["bits_varied"].nunique() >= FEWEST_WIDTHS:
                    first = part.iloc[0]
                    place = tuple(first[name] for name in _PLACE)
                    parts = _parts(first, which, str(execution))
                    found.setdefault(place, []).append((parts, part, missing))
    return [
        _series(_label(parts, neighbours), line.drop_duplicates("bits_varied"), missing)
        for neighbours in found.values()
        for parts, line, missing in neighbours
    ]


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


def _lines(group: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Cut cells of one scheme into lines in which one number varies, and name the others."""
    # As NumPy's: most of the masks below are thrown away again.
    weights, activations = (
        group[name].to_numpy(np.int64) for name in ("weight_bits", "activation_bits")
    )
    is_float = activations == _FLOAT_BITS
    lines = [
        ("", is_float, "weight_bits"),
        ("w = a", ~is_float & (weights == activations), "weight_bits"),
        *(
            (f"a{width}", activations == width, "weight_bits")
            for width in np.unique(activations[~is_float])
        ),
        *(
            (f"w{width}", ~is_float & (weights == width), "activation_bits")
            for width in np.unique(weights[~is_float])
        ),
    ]
    for which, rows, varied in lines:
        if rows.sum() >= FEWEST_WIDTHS:  # most are one cell: `w = a` is cut every way
            line = group[rows]
            yield which, line.assign(bits_varied=line[varied])


def _parts(cell: pd.Series, which: str, execution: str) -> dict[str, str]:
    """Give what may be in a series' label."""
    names = ("batch_size", "calibration_samples", "calibration_seed", "calibration_percentile")
    return {
        "backend": cell["backend"],
        "scheme": cell["scheme"],
        "which": which,
        "execution": execution,
        "calibration_observer": _text(cell["calibration_observer"]),
        **{
            name: f"{name.removeprefix('calibration_')} {cell[name]:g}" if _text(cell[name]) else ""
            for name in names
        },
    }


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]


def _label(
    parts: dict[str, str], neighbours: list[tuple[dict[str, str], pd.DataFrame, set[int]]]
) -> str:
    """Name the scheme, and whatever else sets this series apart."""
    return " · ".join(
        text
        for name, text in parts.items()
        if text
        and (
            name in {"scheme", "which"}
            or len({other[name] for other, _, _ in neighbours} - {""}) > 1
        )
    )


def _series(label: str, line: pd.DataFrame, missing: set[int]) -> BitSeries:
    ordered = line.sort_values("bits_varied")
    bits = ordered["bits_varied"].to_numpy(np.int64)
    value, sqnr_db, floats = (
        ordered[name].to_numpy(np.float64, na_value=np.nan)
        for name in ("value", "sqnr_db", "baseline_value")
    )
    first = ordered.iloc[0]
    return BitSeries(
        first["dataset"],
        first["metric"],
        first["device"],
        int(first["threads"]),
        first["model"],
        label,
        bits,
        np.array(sorted(w for w in missing if bits[0] < w < bits[-1]), dtype=np.int64),
        value,
        float(floats[0]),
        sqnr_db,
        (ordered["execution"] == "simulated").to_numpy(np.bool_),
        fit_line(bits, sqnr_db),
    )
