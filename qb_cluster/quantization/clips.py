"""Where to clip activations: three rules over a histogram of what calibration saw.

Each gives a range inside [min, max]. They do not depend on the order of the values.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.quantization.affine import affine_qparams, symmetric_qparams
from qb_cluster.quantization.histogram import Bins, Histogram, cumulative, quantile

MSE_SHARES: Final = np.geomspace(1, 2**-10, 48)
"""Clips that ``mse`` tries first, as shares of the min-max range."""
MSE_FINE: Final = 8
"""Then twice so many, evenly between the neighbours of the best one so far."""
ENTROPY_BINS: Final = 2048
ENTROPY_LEVELS: Final = 128
ENTROPY_STRIDE: Final = 16
ENTROPY_REACH: Final = 8

_SMOOTHING: Final = 1e-4
_POINT: Final = 1e-4


def percentile(histogram: Histogram, percent: float, *, symmetric: bool) -> tuple[float, float]:
    """Keep the central ``percent`` percent of all values.

    Symmetric: of |x|; else (100 - percent) / 2 percent are cut on either side, as ONNX Runtime's
    PercentileCalibrater does.
    """
    share = percent / 100
    if symmetric:
        return _inside(histogram, quantile(histogram.magnitude_bins(), share))
    bins, cut = histogram.bins(), (1 - share) / 2
    return quantile(bins, cut), quantile(bins, 1 - cut)


def mse(histogram: Histogram, bits: int, *, symmetric: bool) -> tuple[float, float]:
    """Give the range with the smallest squared error of the quantizer that it makes.

    The error of a value spread evenly over a bin has a closed form, so bins wider than a step
    cost nothing in accuracy. Symmetric: one clip is searched. Affine: both ends are shrunk by
    the same share, then each on its own.
    """
    bins = histogram.bins()
    low, high = histogram.low, histogram.high

    def error(shares: tuple[float, float]) -> float:
        ends = shares[0] * low, shares[1] * high
        if symmetric:
            scale, _ = symmetric_qparams(*ends, bits)
            limit = 2 ** (bits - 1) - 1
            return _squared_error(bins, scale, -limit, limit)
        scale, zero_point = affine_qparams(*ends, bits)
        return _squared_error(bins, scale, -zero_point, 2**bits - 1 - zero_point)

    best, least = (1.0, 1.0), error((1.0, 1.0))

    def attempt(shares: tuple[float, float]) -> None:
        nonlocal best, least
        found = error(shares)
        if found < least:
            best, least = shares, found

    moves = [(True, True)] if symmetric else [(True, True), (True, False), (False, True)]
    for move in moves:
        start = best
        for share in MSE_SHARES[1:]:
            attempt(_moved(start, float(share), move))
        reach = float(MSE_SHARES[0] / MSE_SHARES[1] - 1)
        for _ in range(2):
            centre = best
            for offset in np.linspace(-reach, reach, MSE_FINE):
                attempt(_moved(centre, 1 + float(offset), move))
            reach *= 2 / (MSE_FINE - 1)
    if symmetric:
        return _inside(histogram, max(abs(low), abs(high)) * best[0])
    # An end on the wrong side of zero is no clip: shrinking it would leave [min, max].
    return max(best[0] * low, low), min(best[1] * high, high)


def entropy(histogram: Histogram, bits: int) -> tuple[float, float]:
    """Give the range whose quantized distribution is nearest to the true one.

    The calibration of TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017), as in MXNet
    and ONNX Runtime: |x| in 2,048 even bins; for each clip, values beyond it count into its last
    bin, the bins are merged into 2^(bits-1) levels (128 at most, however many the bits), and the
    levels are spread evenly over their non-empty bins. The clip with the smallest
    Kullback-Leibler divergence wins; empty bins count as 1e-4 values.

    Three things differ. Zeros are left out: every quantizer holds them exactly, and after a ReLU
    they would drown the rest (NVIDIA's pytorch-quantization does about the same). Every 16th bin
    is tried rather than each. And the bins span 8 times the 99th percentile of |x| at most,
    where TensorRT's span the maximum: with an outlier beyond that all other values would share
    one bin, and nothing could be told.

    Args:
        histogram: not empty.
        bits: of the activations.
    """
    counts, lower, upper = histogram.magnitude_bins()
    nonzero = upper > np.finfo(np.float32).tiny
    if not nonzero.any():
        return histogram.low, histogram.high
    bins = counts[nonzero], lower[nonzero], upper[nonzero]
    reach = min(float(upper[-1]), ENTROPY_REACH * quantile(bins, 0.99))
    below = cumulative(bins, np.linspace(0, reach, ENTROPY_BINS + 1))
    even, beyond = np.diff(below), float(bins[0].sum()) - float(below[-1])
    levels = min(2 ** (bits - 1), ENTROPY_LEVELS)
    sizes = range(ENTROPY_LEVELS, ENTROPY_BINS + 1, ENTROPY_STRIDE)
    divergences = [_divergence(even, beyond, size, levels) for size in sizes]
    best = sizes[int(np.argmin(divergences))]
    return _inside(histogram, reach * best / ENTROPY_BINS)


def _divergence(counts: NDArray[np.float64], beyond: float, size: int, levels: int) -> float:
    """Give KL(clipped at ``size`` bins ‖ the same in ``levels`` levels), in nats."""
    kept = counts[:size]
    clipped = kept.copy()
    clipped[-1] += counts[size:].sum() + beyond
    level = np.arange(size) * levels // size
    filled = clipped > 0
    width = np.bincount(level, weights=filled, minlength=levels)
    mass = np.bincount(level, weights=kept, minlength=levels)
    merged = np.where(filled, (mass / np.maximum(width, 1))[level], 0.0)
    p = np.maximum(clipped, _SMOOTHING)
    q = np.maximum(merged, _SMOOTHING)
    p /= p.sum()
    q /= q.sum()
    return float(np.sum(p * np.log(p / q)))


def _squared_error(
    bins: Bins,
    scale: float,
    lowest: int,
    highest: int,
) -> float:
    """Give Σ(x - Q(x))² for levels ``scale``·(lowest … highest), values even within bins."""
    counts, lower, upper = bins
    a, b = lower / scale, upper / scale
    width = b - a
    mean = np.empty_like(width)
    point = width < _POINT  # where a difference of integrals would be all rounding
    middle = (a[point] + b[point]) / 2
    mean[point] = (middle - np.clip(np.rint(middle), lowest, highest)) ** 2
    a, b = a[~point], b[~point]
    mean[~point] = (_integral(b, lowest, highest) - _integral(a, lowest, highest)) / (b - a)
    return float(counts @ mean) * scale**2


def _integral(t: NDArray[np.float64], lowest: int, highest: int) -> NDArray[np.float64]:
    """Integrate (u - Q(u))² from 0 to t, in steps: 1/12 a level, and a cube from the last one."""
    level = np.clip(np.rint(t), lowest, highest)
    integral: NDArray[np.float64] = level / 12 + (t - level) ** 3 / 3
    return integral


def _moved(
    shares: tuple[float, float], factor: float, move: tuple[bool, bool]
) -> tuple[float, float]:
    low, high = (
        min(1.0, share * factor) if moves else share
        for share, moves in zip(shares, move, strict=True)
    )
    return low, high


def _inside(histogram: Histogram, clip: float) -> tuple[float, float]:
    """Give the part of [min, max] inside ±clip; a bound that all values exceed is that clip."""
    low, high = max(histogram.low, -clip), min(histogram.high, clip)
    return min(low, histogram.high), max(high, histogram.low)
