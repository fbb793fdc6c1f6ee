"""The latency protocol: float and quantized interleaved on one device, batch of one.

``timing`` takes the samples in blocks. Each block gives one ratio of medians; the speed-up is the
geometric mean of the ratios, with a t-interval on their logarithms.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qb_cluster.contracts import Latency, SampleBlock
from qb_cluster.evaluation.timing import take_samples

Run = Callable[[], object]
Arm = Literal["baseline", "quantized"]
Verdict = Literal["faster", "slower", "equivalent", "undecided"]
EQUIVALENCE: Final = math.log(1.02)  # ±2 %
NOISY: Final = 0.1  # IQR ÷ median


@dataclass(frozen=True, slots=True)
class Speedup:
    """Baseline time ÷ quantized time.

    Attributes:
        ratio: geometric mean over the blocks.
        low: lower end of its interval; ``None`` with fewer than two blocks.
        high: upper end.
        verdict: ``equivalent`` when the ratio is shown to lie within ±2 % (two one-sided tests),
            else ``faster`` or ``slower`` when the interval excludes 1, else ``undecided``.
    """

    ratio: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """What was timed.

    Attributes:
        blocks: every sample, in order.
        capped: whether ``cap_s`` ended it before ``min_runs`` and ``min_s`` were reached.
    """

    blocks: tuple[SampleBlock, ...]
    capped: bool

    def samples(self, arm: Arm) -> NDArray[np.int64]:
        """Give all of an arm's samples in nanoseconds, in order."""
        return np.concatenate([block.latency_ns for block in self.blocks if block.arm == arm])


def measure(
    baseline: Run,
    quantized: Run,
    settings: Latency,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    *,
    self_timed: bool = False,
) -> LatencyResult:
    """Time both arms.

    Args:
        baseline: runs the float model once.
        quantized: runs the quantized model once.
        settings: how long and how often.
        clock_ns: a monotonic clock in nanoseconds.
        self_timed: whether each run returns the nanoseconds it took.
    """
    samples, capped = take_samples(
        baseline,
        quantized,
        warmup_s=settings.warmup_s,
        min_runs=settings.min_runs,
        min_s=settings.min_s,
        cap_s=settings.cap_s,
        seed=settings.seed,
        clock_ns=clock_ns,
        self_timed=self_timed,
    )
    return LatencyResult(tuple(SampleBlock(*block) for block in samples), capped)


def speedup(result: LatencyResult, confidence: float) -> Speedup:
    """Give the speed-up with its interval."""
    logs = _log_medians(result, "baseline") - _log_medians(result, "quantized")
    mean = float(logs.mean())
    if len(logs) < 2:
        return Speedup(math.exp(mean), None, None, "undecided")
    error = float(logs.std(ddof=1) / math.sqrt(len(logs)))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1)) * error
    one_sided = float(stats.t.ppf(confidence, len(logs) - 1)) * error
    low, high = mean - reach, mean + reach
    verdict: Verdict = "undecided"
    if abs(mean) + one_sided < EQUIVALENCE:
        verdict = "equivalent"
    elif low > 0:
        verdict = "faster"
    elif high < 0:
        verdict = "slower"
    return Speedup(math.exp(mean), math.exp(low), math.exp(high), verdict)


def typical(result: LatencyResult, arm: Arm) -> tuple[int, int]:
    """Give the time of one example and its interquartile range, in whole nanoseconds.

    The time is the geometric mean over the blocks of each block's median, so that the times of
    both arms divide to the speed-up. The range is over all samples.
    """
    quarter, three = np.percentile(result.samples(arm), [25, 75])
    return round(math.exp(_log_medians(result, arm).mean())), round(float(three - quarter))


def _log_medians(result: LatencyResult, arm: Arm) -> NDArray[np.float64]:
    """Give the logarithm of each block's median in nanoseconds (at least 1), in order."""
    samples: dict[int, list[NDArray[np.int64]]] = {}
    for block in result.blocks:
        if block.arm == arm:
            samples.setdefault(block.block, []).append(block.latency_ns)
    medians = [float(np.median(np.concatenate(samples[number]))) for number in sorted(samples)]
    return np.log(np.maximum(1.0, medians))
