"""How many bytes a ``.tflite`` takes for a weight; imports no framework."""

from typing import Final

from qb_cluster.contracts import Quantization
from qb_cluster.contracts.coverage import LayerKind
from qb_cluster.quantization.storage import packed_bytes, scale_count
from qb_tflite.support import WEIGHT_BITS

_QPARAM_BYTES: Final = 12
"""A float32 scale and an int64 zero point."""
_BLOCK_BYTES: Final = 2
"""The float16 scale of a block."""
_BYTE: Final = 8
_MATRICES: Final = ("linear", "attention", "recurrent", "embedding")


def stored_bytes(
    kind: LayerKind, shape: tuple[int, ...], quantization: Quantization
) -> float | None:
    """Give the bytes of a weight with its scales; ``None`` where it stays float.

    Args:
        kind: of layer.
        shape: of its weight, output channels first. A convolution of one input channel for each
            output channel is a depthwise one.
        quantization: native integers that ``support`` said yes to.
    """
    scheme, bits = quantization.scheme, quantization.bits.weight
    if kind not in scheme.weights or not _has_kernel(kind, shape, quantization):
        return None
    integers = packed_bytes(shape, bits)
    if scheme.group_size is not None and kind != "embedding":
        return integers + _BLOCK_BYTES * scale_count(shape, scheme)
    # The rows of an embedding have one scale each beside groups, too.
    scales = shape[0] if scheme.group_size is not None else scale_count(shape, scheme)
    # Beside static activations a bias has as many of its own.
    has_bias = scheme.activations == "static" and kind in {"linear", "conv", "conv_transpose"}
    return integers + _QPARAM_BYTES * scales * (2 if has_bias else 1)


def _has_kernel(kind: LayerKind, shape: tuple[int, ...], quantization: Quantization) -> bool:
    scheme, bits = quantization.scheme, quantization.bits.weight
    is_depthwise = kind == "conv" and shape[1] == 1
    if scheme.group_size is not None:
        return kind in _MATRICES and (scheme.activations, bits) == ("dynamic", 4)
    if is_depthwise and (scheme.activations, scheme.granularity) == ("dynamic", "per_tensor"):
        return False
    narrow = bits < _BYTE and (is_depthwise or kind == "conv_transpose")
    return bits in WEIGHT_BITS and not narrow
