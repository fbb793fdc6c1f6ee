"""The Metrics Comparator: outputs of a cell, and of its baseline, to columns of its row."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Predictions
from qb_cluster.errors import CellError
from qb_cluster.evaluation import metrics
from qb_cluster.evaluation.deviation import deviation, top1
from qb_cluster.evaluation.paired import compare_scores, compare_values

Metric = Callable[[NDArray[np.float32], NDArray[Any]], Any]


@dataclass(frozen=True, slots=True)
class Scored:
    """A metric's verdict on one model: a value and, where it has them, per-example scores."""

    value: float
    scores: NDArray[np.float64] | None


def score(metric: Metric, outputs: NDArray[np.float32], targets: NDArray[Any]) -> Scored:
    """Apply a metric.

    Raises:
        CellError: it returns neither one finite number nor a finite number an example.
    """
    raw = np.asarray(metric(outputs, targets), dtype=np.float64)
    if raw.shape not in {(), (len(targets),)}:
        raise CellError(
            f"the metric returned shape {raw.shape}; return one number, or {len(targets)} of "
            "them, one an example"
        )
    value = float(raw.mean())
    if not math.isfinite(value):
        raise CellError(f"the metric returned {value}")
    return Scored(value, raw if raw.ndim else None)


def doubts(
    metric: Callable[..., Any], outputs: NDArray[np.float32], targets: NDArray[Any]
) -> tuple[str, ...]:
    """Say what makes a float model's value doubtful, as far as that is known of a metric."""
    return tuple(metrics.doubts(outputs, targets)) if metric is metrics.accuracy else ()


def compare(
    metric: Metric,
    baseline: NDArray[np.float32],
    quantized: NDArray[np.float32],
    targets: NDArray[Any],
    confidence: float,
) -> dict[str, Any]:
    """Compare a quantized model with its float baseline on the same examples.

    Args:
        metric: see ``evaluation.metrics``.
        baseline: the float model's outputs, n examples along axis 0.
        quantized: the quantized model's, the same examples in the same order.
        targets: length n.
        confidence: of the interval, such as 0.95.

    Returns:
        Columns of the results table.
    """
    one, two = score(metric, baseline, targets), score(metric, quantized, targets)
    if one.scores is not None and two.scores is not None:
        difference = compare_scores(one.scores, two.scores, confidence)
    else:
        difference = compare_values(metric, baseline, quantized, targets, confidence)
    distance = asdict(deviation(baseline, quantized))
    return {
        "value": two.value,
        "baseline_value": one.value,
        "delta": difference.delta,
        "delta_low": difference.low,
        "delta_high": difference.high,
        "p_value": difference.p_value,
        "flips_worse": difference.flips_worse,
        "flips_better": difference.flips_better,
    } | {
        key: None if value is None or math.isnan(value) else value
        for key, value in distance.items()
    }


def predictions(
    metric: Metric, outputs: NDArray[np.float32], targets: NDArray[Any], ids: NDArray[np.str_]
) -> Predictions:
    """Give the per-example table that makes every paired statistic possible later."""
    n = len(ids)
    classes = targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
    predicted, scores = top1(outputs), score(metric, outputs, targets).scores
    return Predictions(
        example_ids=ids,
        targets=targets.astype(np.int64) if classes else np.full(n, -1, dtype=np.int64),
        predicted=np.full(n, -1, dtype=np.int64) if predicted is None else predicted,
        scores=np.full(n, np.nan) if scores is None else scores,
    )
