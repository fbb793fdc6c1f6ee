"""How many bytes an ONNX file takes for a weight; imports no framework."""

import math
from typing import Final

from qb_cluster.contracts import Quantization
from qb_cluster.contracts.coverage import LayerKind
from qb_cluster.quantization.storage import SCALE_BYTES, scale_count, usual_bytes
from qb_onnxruntime.blocks import PACKED_BITS, block_size

_PRODUCTS: Final = ("linear", "attention")
_ZERO_POINT: Final = 1
_BIAS: Final = 8
"""A float32 scale and an int32 zero point."""


def stored_bytes(
    kind: LayerKind, shape: tuple[int, ...], quantization: Quantization
) -> float | None:
    """Give the bytes of a weight with its scales; ``None`` where it stays float.

    Args:
        kind: of layer.
        shape: of its weight, output channels first.
        quantization: native integers that ``support`` said yes to.
    """
    scheme, bits = quantization.scheme, quantization.bits.weight
    is_dynamic = scheme.activations == "dynamic"
    if kind not in scheme.weights or (is_dynamic and kind == "conv_transpose"):
        return None
    if is_dynamic and kind == "conv" and not (scheme.symmetric or scheme.group_size is None):
        return None
    if scheme.activations == "none" and kind in _PRODUCTS and bits in PACKED_BITS:
        block = block_size(math.prod(shape[1:]), scheme, bits)
        if block is not None:
            blocks = -(-math.prod(shape[1:]) // block)
            zero_points = 0 if scheme.symmetric else shape[0] * -(-blocks * bits // 8)
            return shape[0] * blocks * (block * bits / 8 + SCALE_BYTES) + zero_points
    extra = 0
    if scheme.activations == "static" and kind != "embedding":
        # Symmetric weights have zero points too, and a bias has scales and zero points of its own.
        extra = scale_count(shape, scheme) * (_ZERO_POINT + (0 if kind == "attention" else _BIAS))
    return usual_bytes(shape, scheme, bits) + extra
