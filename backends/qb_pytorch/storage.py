"""How many bytes torchao's tensors and PT2E take for a weight; imports no torch."""

import math
from typing import Final

from qb_cluster.contracts import Quantization
from qb_cluster.contracts.coverage import LayerKind
from qb_cluster.quantization.storage import SCALE_BYTES, scale_count

_HALF_BYTE: Final = 4
_PRODUCTS: Final = ("linear", "attention")


def stored_bytes(
    kind: LayerKind, shape: tuple[int, ...], quantization: Quantization
) -> float | None:
    """Give the bytes of a weight with its scales on the CPU; ``None`` where it stays float.

    Args:
        kind: of layer.
        shape: of its weight, output channels first.
        quantization: native integers that ``support`` said yes to.
    """
    scheme, bits = quantization.scheme, quantization.bits.weight
    if kind not in scheme.weights or not _has_kernel(kind, shape, quantization):
        return None
    integers = float(math.prod(shape))
    is_narrow = scheme.activations == "none" and bits <= _HALF_BYTE and shape[-1] % 2 == 0
    if kind in _PRODUCTS and is_narrow:
        integers /= 2
    zero_point = 1
    if scheme.activations == "static":
        zero_point = 8  # PT2E's are int64
    elif kind in _PRODUCTS and scheme.symmetric:
        zero_point = 0
    return integers + (SCALE_BYTES + zero_point) * scale_count(shape, scheme)


def _has_kernel(kind: LayerKind, shape: tuple[int, ...], quantization: Quantization) -> bool:
    scheme = quantization.scheme
    if scheme.group_size is not None and (len(shape) != 2 or shape[1] % scheme.group_size):
        return False
    if kind in _PRODUCTS:
        return True
    if scheme.activations == "static":
        return kind == "conv"
    return kind == "embedding" or (
        kind == "conv" and len(shape) == 4 and scheme.activations == "none"
    )
