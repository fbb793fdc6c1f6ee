"""The blocks of MatMulNBits: how many inputs of a row share a scale."""

from typing import Final

from qb_cluster.contracts import Scheme

PACKED_BITS: Final = (2, 4, 8)
BLOCKS: Final = (16, 32, 64, 128, 256)
"""Block sizes for which MatMulNBits has fast kernels."""


def block_size(inputs: int, scheme: Scheme, bits: int) -> int | None:
    """Give the block size that can hold the scheme's scales; ``None`` if none can.

    A scale that serves more than a block (a whole channel, a tensor) is repeated for each. Rows
    are padded to whole blocks, so without groups the block is the one that takes least room.

    Args:
        inputs: of a row.
        scheme: how many weights share a scale.
        bits: one of ``PACKED_BITS``.
    """
    if scheme.group_size is not None:
        return max((b for b in BLOCKS if scheme.group_size % b == 0), default=None)
    return min(BLOCKS, key=lambda block: -(-inputs // block) * (block * bits / 8 + 4))
