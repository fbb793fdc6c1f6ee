"""Rounding weights as a scheme says: every option, any shape, in NumPy.

Weights of any shape are seen as rows that have one scale each: the whole tensor, an output
channel (axis 0), or a group of consecutive inputs of a channel. A short last group is filled up
with zeros, which every quantizer here represents exactly, so they change neither range nor error.

Formulas: Krishnamoorthi, arXiv 1806.08342, section 2; Nagel et al., arXiv 2106.08295, section 3.
Signed scales: ``quantize_row_q4_0_ref`` of ggml; onnxruntime's quantizer for MatMulNBits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Bits, NumberFormat, Scheme
from qb_cluster.errors import NonFiniteError, PlugInError
from qb_cluster.quantization.grid import Grid, Rows, usable

COARSE_CLIPS: Final = np.geomspace(1, 1 / 32, 32)
"""Clips that ``weight_range="mse"`` tries first, as shares of the min-max range."""
FINE_CLIPS: Final = 8
"""Then twice so many, evenly between the neighbours of the best one so far: in the end to 1 %."""

_LARGEST: Final = float(np.finfo(np.float32).max)
_BLOCK: Final = 2**16
"""Weights of which the search for a clip keeps its temporaries in the cache."""
_FLOAT_TYPES: Final[dict[NumberFormat, Any]] = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """Weights in integers: ``(integers - zero_point) * scale`` gives them back.

    Attributes:
        integers: int32, the shape of the weights; signed for symmetric schemes, and
            0 … 2^bits - 1 for affine ones.
        scale: float32, broadcastable against ``integers``: of shape (1, 1, …) per tensor,
            (out, 1, …) per channel. Per group it has the full shape, one entry a weight;
            ``scale.reshape(out, -1)[:, ::group_size]`` is one entry a group. Never zero, and
            positive but for ``weight_range="signed_max"``.
        zero_point: int32, the shape of ``scale``; all zero for symmetric schemes.
    """

    integers: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]

    def dequantized(self) -> NDArray[np.float32]:
        """Give the weights that the integers stand for; float32, the same shape."""
        exact = (self.integers - self.zero_point) * self.scale.astype(np.float64)
        weights: NDArray[np.float32] = np.clip(exact, -_LARGEST, _LARGEST).astype(np.float32)
        return weights


def quantize_dequantize_weights(
    weights: NDArray[np.float32], scheme: Scheme, bits: Bits, *, name: str = "weights"
) -> NDArray[np.float32]:
    """Round weights to what the scheme can hold, and return them as float32.

    Integers round half to even. Float formats do too, and saturate rather than overflow;
    fp8 is scaled (per tensor, channel or group) so that max|w| is the format's largest number,
    448 for E4M3 and 57,344 for E5M2.

    Args:
        weights: float32, any shape, output channels on axis 0.
        scheme: all its weight options count; the bits of layers are up to the caller.
        bits: only the weight's count.
        name: of the tensor, for errors.

    Returns:
        float32, the shape of ``weights``.

    Raises:
        NonFiniteError: the weights hold NaN or infinity.
        PlugInError: the scheme's own weight quantizer returns something else than weights.
    """
    _check_finite(weights, name)
    if scheme.weight_quantizer is not None:
        return _custom(weights, scheme, bits.weight, name)
    if scheme.number == "integer":
        return quantize_weights(weights, scheme, bits, name=name).dequantized()
    float_type = _FLOAT_TYPES[scheme.number]
    if scheme.number in {"fp16", "bf16"}:
        return _saturated(weights, float_type)
    rows, restore = _rows(weights, scheme)
    scale = usable(np.abs(rows).max(axis=1, keepdims=True, initial=0.0) / _largest(float_type))
    return restore(_saturated(rows / scale, float_type) * scale)


def quantize_weights(
    weights: NDArray[np.float32], scheme: Scheme, bits: Bits, *, name: str = "weights"
) -> IntegerWeights:
    """Quantize weights to integers.

    ==========================  =============================================================
    symmetric, narrow range     scale = max|w| / (2^(b-1) - 1)
    symmetric, full range       scale = max(max w / (2^(b-1) - 1), -min w / 2^(b-1)): the
                                smallest one that clips nothing
    affine                      scale = (max(w, 0) - min(w, 0)) / (2^b - 1), and the zero point
                                an integer, so that zero is exact
    ``weight_range="mse"``      the same over a range that is shrunk, per scale, by the share
                                in 1/32 … 1 with the smallest squared error
    ``"signed_max"``            full range; scale = w_max / -2^(b-1), where w_max is the weight of
                                largest magnitude with its sign (the negative one of two): it is
                                exact, and the scale negative where it is positive. A weight
                                near -w_max is clipped, by half a step at most beyond the half
                                that rounding costs
    ==========================  =============================================================

    Args:
        weights: float32, any shape, output channels on axis 0.
        scheme: an integer scheme without a weight quantizer of its own.
        bits: only the weight's count.
        name: of the tensor, for errors.

    Raises:
        NonFiniteError: the weights hold NaN or infinity.
        ValueError: the scheme has no integers.
    """
    if scheme.number != "integer" or scheme.weight_quantizer is not None:
        raise ValueError(f"the weights of scheme '{scheme.name}' are no integers")
    _check_finite(weights, name)
    rows, restore = _rows(weights, scheme)
    grid = Grid.of(scheme, bits.weight)
    shares = np.ones((len(rows), 1))
    if scheme.weight_range == "mse":
        step = max(1, _BLOCK // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            shares[start : start + step] = _best_shares(rows[start : start + step], grid)
    scale, zero_point = grid.qparams(rows, shares)
    integers = grid.round(rows, scale, zero_point).astype(np.int32)
    return IntegerWeights(
        restore(integers),
        _scales_like(scale, weights, scheme, restore, rows.shape),
        _scales_like(zero_point, weights, scheme, restore, rows.shape),
    )


def _best_shares(rows: Rows, grid: Grid) -> NDArray[np.float64]:
    """Give, for each row, the share of its min-max range with the smallest squared error.

    Tries ``COARSE_CLIPS``, 1 (min-max itself) among them, and twice ``FINE_CLIPS`` shares around
    the best one so far; a share is kept only where it is truly better.
    """
    largest = usable(np.abs(rows).max(axis=1, keepdims=True, initial=0.0))
    rows = rows / largest  # so that squares neither overflow nor vanish
    best = np.ones((len(rows), 1))
    least = grid.squared_error(rows, best)

    def attempt(shares: NDArray[np.float64]) -> None:
        error = grid.squared_error(rows, shares)
        better = error < least
        best[better], least[better] = shares[better], error[better]

    for share in COARSE_CLIPS[1:]:
        attempt(np.full_like(best, share))
    reach = COARSE_CLIPS[0] / COARSE_CLIPS[1] - 1  # from a clip to its neighbour, relative
    for _ in range(2):
        centre = best.copy()
        for offset in np.linspace(-reach, reach, FINE_CLIPS):
            attempt(np.minimum(centre * (1 + offset), 1.0))
        reach *= 2 / (FINE_CLIPS - 1)
    return best


def _rows(
    weights: NDArray[np.float32], scheme: Scheme
) -> tuple[Rows, Callable[[NDArray[Any]], NDArray[Any]]]:
    """View weights as rows with one scale each; also give the way back to their shape."""
    shape, size = weights.shape, weights.size
    channels = shape[0] if shape and size else 1
    match scheme.granularity:
        case "per_tensor":
            return weights.reshape(1, size), lambda rows: rows.reshape(shape)
        case "per_channel":
            return weights.reshape(channels, -1), lambda rows: rows.reshape(shape)
    assert scheme.group_size is not None
    inputs = size // channels
    flat = weights.reshape(channels, inputs)
    padded = np.pad(flat, ((0, 0), (0, -inputs % scheme.group_size)))

    def restore(rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(padded.shape)[:, :inputs].reshape(shape)

    return padded.reshape(-1, scheme.group_size), restore


def _scales_like(
    values: NDArray[Any],
    weights: NDArray[np.float32],
    scheme: Scheme,
    restore: Callable[[NDArray[Any]], NDArray[Any]],
    rows_shape: tuple[int, ...],
) -> NDArray[Any]:
    """Shape one value a row, (rows, 1), so that it is broadcastable against the weights."""
    if scheme.granularity == "per_group":
        return restore(np.broadcast_to(values, rows_shape))
    return values.reshape(-1, *[1] * (weights.ndim - 1)) if weights.ndim else values.reshape(())


def _saturated(values: NDArray[np.float32], float_type: Any) -> NDArray[np.float32]:
    largest = _largest(float_type)
    clipped: NDArray[np.float32] = np.clip(values, -largest, largest).astype(float_type)
    return clipped.astype(np.float32)


def _largest(float_type: Any) -> float:
    return float(ml_dtypes.finfo(float_type).max)  # type: ignore[no-untyped-call]


def _check_finite(weights: NDArray[np.float32], name: str) -> None:
    if not np.isfinite(weights).all():
        raise NonFiniteError(
            f"{name}: {np.sum(~np.isfinite(weights))} of {weights.size} weights are NaN or "
            "infinite, and no quantizer has a number for them; load or train the model anew, or "
            "leave this layer float under the scheme's layers"
        )


def _custom(
    weights: NDArray[np.float32], scheme: Scheme, bits: int, name: str
) -> NDArray[np.float32]:
    assert scheme.weight_quantizer is not None
    rounded = np.asarray(scheme.weight_quantizer(weights.copy(), bits))
    if rounded.shape != weights.shape or rounded.dtype.kind != "f":
        raise PlugInError(
            f"the weight quantizer of scheme '{scheme.name}' turned '{name}', float32 of shape "
            f"{weights.shape}, into {rounded.dtype} of shape {rounded.shape}; return the "
            "dequantized weights in the same shape"
        )
    return rounded.astype(np.float32)
