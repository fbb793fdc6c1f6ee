"""Paired statistics of a quantized model against its float baseline, on the same examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAP_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Quantized minus float.

    Attributes:
        delta: the difference of the metric's values.
        low: lower end of its interval; ``None`` where n is too small for one.
        high: upper end.
        p_value: exact McNemar test, two-sided; ``None`` unless scores are right or wrong.
        flips_worse: examples right in float and wrong quantized; ``None`` as above.
        flips_better: the reverse.
    """

    delta: float
    low: float | None
    high: float | None
    p_value: float | None = None
    flips_worse: int | None = None
    flips_better: int | None = None


def is_right_or_wrong(scores: NDArray[Any]) -> bool:
    """Tell whether scores are 0 and 1 only."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def proportion_difference(
    worse: int, better: int, n: int, confidence: float
) -> tuple[float, float]:
    """Interval of a difference of paired proportions, (better - worse) / n.

    The adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37:479-488):
    one is added to each discordant count and two to n. Unlike the plain Wald interval it does
    not shrink to nothing when no example flipped, which would be a claim no sample can make.

    Args:
        worse: examples right in float and wrong quantized.
        better: the reverse.
        n: examples in all.
        confidence: such as 0.95.
    """
    p_worse, p_better = (worse + 1) / (n + 2), (better + 1) / (n + 2)
    centre = p_better - p_worse
    spread = np.sqrt((p_worse + p_better - centre**2) / (n + 2))
    reach = float(stats.norm.ppf((1 + confidence) / 2) * spread)
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def compare_scores(
    baseline: NDArray[np.float64], quantized: NDArray[np.float64], confidence: float, seed: int = 0
) -> Difference:
    """Compare per-example scores of the two arms.

    Args:
        baseline: float model's scores, shape (n,).
        quantized: quantized model's, the same examples in the same order.
        confidence: of the interval, such as 0.95.
        seed: of the bootstrap, for scores that are not 0 and 1.
    """
    delta = float(np.mean(quantized) - np.mean(baseline))
    if is_right_or_wrong(baseline) and is_right_or_wrong(quantized):
        worse = int(np.sum((baseline == 1) & (quantized == 0)))
        better = int(np.sum((baseline == 0) & (quantized == 1)))
        low, high = proportion_difference(worse, better, len(baseline), confidence)
        discordant = worse + better
        p_value = float(stats.binomtest(worse, discordant, 0.5).pvalue) if discordant else 1.0
        return Difference(delta, low, high, p_value, worse, better)
    change = quantized - baseline
    interval = _bootstrap(lambda rows: float(np.mean(change[rows])), len(change), confidence, seed)
    return Difference(delta, *interval)


def compare_values(
    metric: Callable[[NDArray[np.float32], NDArray[Any]], float],
    baseline: NDArray[np.float32],
    quantized: NDArray[np.float32],
    targets: NDArray[Any],
    confidence: float,
    seed: int = 0,
) -> Difference:
    """Compare a metric that is one number: examples are resampled once for both arms."""

    def difference(rows: NDArray[np.int64]) -> float:
        return float(metric(quantized[rows], targets[rows])) - float(
            metric(baseline[rows], targets[rows])
        )

    everything = np.arange(len(targets))
    interval = _bootstrap(difference, len(targets), confidence, seed)
    return Difference(difference(everything), *interval)


def _bootstrap(
    statistic: Callable[[NDArray[np.int64]], float], n: int, confidence: float, seed: int
) -> tuple[float | None, float | None]:
    if n < 2:
        return None, None
    result = stats.bootstrap(
        (np.arange(n),),
        statistic,
        vectorized=False,
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)
