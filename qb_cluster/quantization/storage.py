"""What weights of a shape take when they are stored in few bits: the parts that backends add up."""

import math

from qb_cluster.contracts import Scheme

SCALE_BYTES = 4
"""A float32."""


def scale_count(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Count the scales of a weight.

    Args:
        shape: output channels first.
        scheme: its granularity says how many weights share one.
    """
    if scheme.granularity == "per_tensor":
        return 1
    if scheme.group_size is None:
        return shape[0]
    return shape[0] * -(-math.prod(shape[1:]) // scheme.group_size)


def packed_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Count the bytes of a weight whose integers of ``bits`` bits are packed, without scales."""
    return -(-math.prod(shape) * bits // 8)


def usual_bytes(shape: tuple[int, ...], scheme: Scheme, bits: int) -> int:
    """Count the bytes of a weight in packed integers, with float32 scales and byte zero points."""
    each = SCALE_BYTES if scheme.symmetric else SCALE_BYTES + 1
    return packed_bytes(shape, bits) + each * scale_count(shape, scheme)
