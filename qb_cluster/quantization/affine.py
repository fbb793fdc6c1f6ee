"""Uniform quantization in NumPy: the one definition that backends and oracles share.

Weights are symmetric over the narrow range ±(2^(b-1) - 1), as LiteRT and ONNX Runtime store
them; activations are affine over all 2^b levels with zero exactly representable. Rounding is
half to even (IEEE 754, ``numpy.rint``). Formulas: Krishnamoorthi, arXiv 1806.08342, section 2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def symmetric_limit(bits: int) -> int:
    """Give the largest integer of the narrow symmetric range, 2^(bits-1) - 1."""
    return int(2 ** (bits - 1)) - 1


def symmetric_scale(
    weights: NDArray[np.floating[Any]], bits: int, axis: int | None = 0
) -> NDArray[np.float32]:
    """Give the max-abs scale, max|w| / (2^(bits-1) - 1).

    Args:
        weights: any shape.
        bits: 2–16.
        axis: the channel axis that keeps a scale of its own; ``None`` for one per tensor.

    Returns:
        float32, broadcastable against ``weights``. A channel that is
        all zero (or denormal) gets scale 1.
    """
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.max(np.abs(weights), axis=others, keepdims=True, initial=0.0)
    scale = (largest / symmetric_limit(bits)).astype(np.float32)
    return np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))


def quantize_symmetric(
    weights: NDArray[np.floating[Any]], bits: int, axis: int | None = 0
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Quantize to integers in ±(2^(bits-1) - 1).

    Returns:
        The integers (int32, shape of ``weights``) and their scale (see ``symmetric_scale``).
    """
    scale = symmetric_scale(weights, bits, axis)
    limit = symmetric_limit(bits)
    return np.clip(np.rint(weights / scale), -limit, limit).astype(np.int32), scale


def quantize_dequantize_symmetric(
    weights: NDArray[np.floating[Any]], bits: int, axis: int | None = 0
) -> NDArray[np.float32]:
    """Round weights to what ``bits`` bits can hold, and return them as float32."""
    integers, scale = quantize_symmetric(weights, bits, axis)
    return (integers * scale).astype(np.float32)


def affine_qparams(low: float, high: float, bits: int) -> tuple[float, int]:
    """Give scale and zero point of an unsigned affine quantizer over [low, high].

    The range is widened to hold zero, and the zero point is an integer in 0 … 2^bits - 1, so
    that zero (padding, ReLU) is exact.

    Args:
        low: smallest value seen.
        high: largest value seen.
        bits: 2–16.

    Returns:
        ``(scale, zero_point)``; scale 1 for a range that is all zero in float32.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = (high - low) / levels
    if scale < np.finfo(np.float32).tiny:  # an all-zero range, or one float32 cannot divide by
        return 1.0, 0
    zero_point = int(np.clip(np.rint(-low / scale), 0, levels))
    return scale, zero_point


def symmetric_qparams(low: float, high: float, bits: int) -> tuple[float, int]:
    """Give scale and zero point of a quantizer over [low, high] that is symmetric about zero.

    The scale is max(|low|, |high|) / (2^(bits-1) - 1). The zero point is the middle, 2^(bits-1),
    of the same unsigned integers that ``affine_qparams`` counts in, so either pair fits
    ``quantize_dequantize_affine``; subtract 2^(bits-1) for signed integers with zero point 0.

    Args:
        low: smallest value seen.
        high: largest value seen.
        bits: 2–16.

    Returns:
        ``(scale, zero_point)``; scale 1 for a range that is all zero in float32.
    """
    scale = max(abs(low), abs(high)) / symmetric_limit(bits)
    if scale < np.finfo(np.float32).tiny:
        scale = 1.0
    return scale, 2 ** (bits - 1)


def quantize_dequantize_affine(
    values: NDArray[np.floating[Any]], scale: float, zero_point: int, bits: int
) -> NDArray[np.float32]:
    """Round activations to the 2^bits levels of an affine quantizer; float32 out."""
    integers = np.clip(np.rint(values / scale) + zero_point, 0, 2**bits - 1)
    restored: NDArray[np.float32] = ((integers - zero_point) * scale).astype(np.float32)
    return restored
