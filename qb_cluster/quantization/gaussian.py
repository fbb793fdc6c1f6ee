"""Signal to noise of rounded weights, and what Gaussian weights of the same shape would have."""

import functools
import math
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.quantization.weights import quantize_dequantize_weights

GAUSSIAN_WEIGHTS: Final = 2**16
"""So many random weights make the expected SQNR stable within some hundredths of a decibel."""
LARGEST_TENSOR: Final = 2**22
"""Ten times more weights under one scale would cost another 0.7 dB: 5.2 σ become 5.6."""


def expected_weight_sqnr_db(shape: tuple[int, ...], scheme: Scheme, bits: Bits) -> float | None:
    """Give the SQNR of Gaussian weights of a shape under a scheme, from random ones.

    Args:
        shape: of the weight, output channels on axis 0.
        scheme: how it is rounded.
        bits: only the weight's count.

    Returns:
        In dB; ``None`` where the scheme brings weight arithmetic of its own.
    """
    if scheme.weight_quantizer is not None:
        return None
    row = max(1, math.prod(shape[1:]))
    rows = min(shape[0], max(1, LARGEST_TENSOR // row))
    if scheme.granularity != "per_tensor":  # rows are alike: as many as are needed
        rows = -(-GAUSSIAN_WEIGHTS // row)
    shape = (rows, *shape[1:])
    return _gaussian_sqnr_db(shape, replace(scheme, layers=()), bits)


@functools.lru_cache(maxsize=1024)
def _gaussian_sqnr_db(shape: tuple[int, ...], scheme: Scheme, bits: Bits) -> float:
    weights = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return weight_sqnr_db(weights, quantize_dequantize_weights(weights, scheme, bits))


def weight_sqnr_db(exact: NDArray[np.floating[Any]], rounded: NDArray[np.floating[Any]]) -> float:
    """Give the SQNR of rounded weights against exact ones of the same shape, in dB."""
    values = exact.astype(np.float64)
    return decibels(float(np.sum(values**2)), float(np.sum((values - rounded) ** 2)))


def decibels(signal: float, noise: float) -> float:
    """Give the ratio of two powers in dB: infinite without noise, -infinite without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
