"""Verdicts: does a cell hold its tolerance, and how sure is that?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qb_cluster.contracts import Calibration
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.contracts.judgement import Judgement
from qb_cluster.contracts.match import Axis
from qb_cluster.contracts.tolerance import Tolerance
from qb_cluster.evaluation import noninferiority as tests
from qb_cluster.report.records import Row, is_baseline, records

_WHOLE_METRIC: Final = 1.0  # the range of a share
COLUMNS: Final = (
    "tolerance",
    "quality_verdict",
    "no_verdict_reason",
    "p_verdict",
    "p_adjusted",
    "examples_needed",
)


@dataclass(frozen=True, slots=True)
class _Test:
    """What is tried on a cell that gets a verdict."""

    margin: float
    shown: tests.Direction


def judge(results: pd.DataFrame, judgement: Judgement) -> pd.DataFrame:
    """Judge every cell of a run.

    A cell is ``within`` where its loss is shown to be smaller than the tolerance, ``worse`` where
    it is shown to be larger, each at the error rate 1 - ``confidence``, else ``undecided``.

    Args:
        results: the table ``results``.
        judgement: what the sweep accepts.

    Returns:
        A row per row of ``results``, in its order and with its index, with ``COLUMNS``:
        ``tolerance``, the margin in the metric's own unit, null where there is none;
        ``quality_verdict``, null where there is none, ``no_verdict_reason`` saying why;
        ``p_verdict``, one-sided, of what is nearer to be shown; ``p_adjusted``, the same after
        ``judgement.adjust``; ``examples_needed`` to decide what is undecided, were its rates of
        flips (or its spread) those seen, null where no number would.
    """
    rows = records(results)
    tried = [_test(row, judgement) for row in rows]
    judged = [(row, one) for row, one in zip(rows, tried, strict=True) if isinstance(one, _Test)]
    family = len(judged) if judgement.adjust == "holm" else 1
    p = np.array([_p(row, one, (1 - row["confidence"]) / family) for row, one in judged])
    adjusted = iter(tests.holm(p) if judgement.adjust == "holm" else p)
    each, ranks = iter(p), iter(_multipliers(p) if family > 1 else np.ones(len(p)))
    columns: list[tuple[Any, ...]] = []
    for row, one in zip(rows, tried, strict=True):
        if isinstance(one, str):
            columns.append((None, None, one or None, None, None, None))
            continue
        p_adjusted, error_rate = float(next(adjusted)), 1 - row["confidence"]
        is_shown, level = p_adjusted <= error_rate, error_rate / next(ranks)
        verdict = one.shown if is_shown else "undecided"
        needed = None if is_shown else _needed(row, one.margin, level)
        columns.append((one.margin, verdict, None, next(each), p_adjusted, needed))
    dtypes = "Float64", "str", "str", "Float64", "Float64", "Int64"
    types = dict(zip(COLUMNS, dtypes, strict=True))
    return pd.DataFrame(columns, index=results.index, columns=list(COLUMNS)).astype(types)


def labels_of(row: Row) -> Mapping[Axis, str]:
    """Give what rules of a spec match, by axis, of a row of results."""
    calibration = None
    if row["calibration_observer"] is not None:
        percentile = row["calibration_percentile"]
        calibration = Calibration(
            row["calibration_samples"],
            row["calibration_seed"],
            row["calibration_observer"],
            *(() if percentile is None else (percentile,)),
        )
    device = row["device"]
    if device == "cpu" and row["threads"] not in {None, 1}:
        device = f"{device}[threads={row['threads']}]"
    plain: dict[Axis, str] = {
        "model": row["model"],
        "dataset": row["dataset"],
        "scheme": row["scheme"],
        "bits": row["bits"],
        "backend": row["backend"],
    }
    return plain | {
        "device": device,
        "execution": row["execution"] or "unsupported",
        "calibration": calibration_label(calibration),
    }


def _test(row: Row, judgement: Judgement) -> _Test | str:
    """Tell what is tried on a cell, or why it gets no verdict; a float baseline needs no reason."""
    if is_baseline(row):
        return ""
    if reason := _no_result(row):
        return reason
    tolerance = judgement.tolerance(row["metric"], labels_of(row))
    if tolerance is None:
        return f"no tolerance is set for {row['metric']}"
    return _meaningless(row, tolerance) or _tried(row, tolerance)


def _no_result(row: Row) -> str:
    if row["status"] == "partial":
        return str(row["error"] or row["status"])
    if row["status"] != "ok":
        return str(row["status"])
    if row["baseline_doubt"]:
        return str(row["baseline_doubt"])
    is_known = row["delta"] is not None and row["examples"] is not None
    return "" if is_known else "no change from float is known"


def _meaningless(row: Row, tolerance: Tolerance) -> str:
    """Say why a tolerance means nothing for a cell's metric."""
    values = row["value"], row["baseline_value"]
    if tolerance.unit == "pt" and not all(0 <= value <= _WHOLE_METRIC for value in values):
        return f"{tolerance} is for shares, and {row['metric']} is {values[1]:g} for float"
    margin = tolerance.margin(row["baseline_value"])
    if margin == 0:
        return f"{tolerance} of a float value of 0 is nothing"
    if _has_flips(row) and margin >= _WHOLE_METRIC:
        return f"a tolerance of {tolerance} is all that {row['metric']} can lose; write it in pt"
    return ""


def _tried(row: Row, tolerance: Tolerance) -> _Test:
    margin = tolerance.margin(row["baseline_value"])
    return _Test(margin, tests.direction(row["delta"], margin))


def _has_flips(row: Row) -> bool:
    return row["flips_worse"] is not None and row["flips_better"] is not None


def _p(row: Row, tried: _Test, level: float) -> float:
    """Give p; 1 where nothing can be shown."""
    against = row["examples"], tried.margin, tried.shown
    if _has_flips(row):
        return tests.paired_p(row["flips_worse"], row["flips_better"], *against, level)
    error = _error(row)
    return 1.0 if error is None else tests.mean_p(row["delta"], error, *against)


def _error(row: Row) -> float | None:
    """Give the standard error of a change; ``None`` where nothing tells how it varies.

    Where no example differs at all, the sample says nothing of how much one may.
    """
    low, high, n = row["delta_low"], row["delta_high"], row["examples"]
    if low is None or high is None or n < 2 or high <= low:
        return None
    return tests.implied_error(low, high, row["confidence"], n)


def _needed(row: Row, margin: float, level: float) -> int | None:
    n = row["examples"]
    if _has_flips(row):
        flips = row["flips_worse"], row["flips_better"]
        return tests.paired_examples_needed(*flips, n, margin, level)
    error = _error(row)
    if error is None:
        return None
    return tests.mean_examples_needed(row["delta"], error, n, margin, level)


def _multipliers(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give what Holm multiplies each p with: the number of those that are not smaller."""
    ranks = np.empty(len(p))
    ranks[np.argsort(p, kind="stable")] = len(p) - np.arange(len(p))
    return ranks
