"""Weights of 4 bits or fewer in the layout of torch's CUDA kernel, ``_weight_int4pack_mm``.

The kernel computes in bfloat16: q in 0 … 15 stands for (q - 8)·scale + zero, and scale and zero are
bfloat16 too. So a native cell differs from its simulation by about 56 dB, where 4 bits leave
about 20. torchao's tensor pads inputs to multiples of 1,024 and outputs to multiples of 8.
"""

from typing import Final

import numpy as np
import torch

from qb_cluster.quantization.weights import IntegerWeights
from qb_pytorch import cuda

GROUPS: Final = (256, 128, 64, 32)
"""Inputs to a scale that the kernel knows."""
BITS: Final = 4
LEAST_CAPABILITY: Final = (8, 0)
_INPUTS: Final = 1024
_OUTPUTS: Final = 8
_INNER_K_TILES: Final = 8
_MIDDLE: Final = 2 ** (BITS - 1)


def group(shape: torch.Size, block: tuple[int, ...]) -> int | None:
    """Give the largest group of the kernel that fits into the scheme's own.

    Args:
        shape: of the weight, outputs by inputs.
        block: of weights that share a scale.

    Returns:
        ``None`` where none fits, and where padding would take more than a byte a weight.
    """
    outputs, inputs = shape
    if 2 * outputs * inputs < _padded(outputs, _OUTPUTS) * _padded(inputs, _INPUTS):
        return None
    return next((size for size in GROUPS if block[1] % size == 0), None)


def pack(integers: IntegerWeights, size: int) -> torch.Tensor:
    """Pack the weights of a linear layer.

    Args:
        integers: of 4 bits at most.
        size: what ``group`` gave.

    Returns:
        torchao's tensor, on the CPU, where nothing can compute with it.

    Raises:
        UnsupportedError: this process sees no GPU, or one that is too old.
    """
    from torchao.quantization.quantize_.workflows import Int4TilePackedTo4dTensor

    cuda.require("the 4-bit kernel", LEAST_CAPABILITY)
    pairs, scale_and_zero = operands(integers, size)
    with cuda.memory_errors():
        packed = torch.ops.aten._convert_weight_to_int4pack(  # noqa: SLF001 no other way in
            pairs.to(cuda.DEVICE), _INNER_K_TILES
        ).cpu()
    shape = torch.Size(integers.integers.shape)
    return Int4TilePackedTo4dTensor(packed, scale_and_zero, [1, size], shape)


def operands(integers: IntegerWeights, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give what the kernel reads, before its integers are shuffled.

    Returns:
        Two integers to a byte, the earlier input in the upper half, ``(outputs, inputs / 2)``
        after padding; scales and zeros in bfloat16, ``(inputs / size, outputs, 2)``.
    """
    outputs, inputs = integers.integers.shape
    levels = integers.integers - integers.zero_point + _MIDDLE
    zero = np.zeros_like(integers.zero_point)
    if levels.min() < 0 or levels.max() >= 2**BITS:  # affine, all 4 bits
        levels, zero = integers.integers, _MIDDLE - integers.zero_point
    more = (
        (0, _padded(outputs, _OUTPUTS) - outputs),
        (0, _padded(inputs, _INPUTS) - inputs),
    )
    # The middle stands for zero where the scale is zero too.
    levels = np.pad(levels, more, constant_values=_MIDDLE).astype(np.uint8)
    pairs = levels[:, ::2] << BITS | levels[:, 1::2]
    each = [
        np.broadcast_to(values, (outputs, inputs))[:, ::size]
        for values in (integers.scale, zero * integers.scale)
    ]
    both = np.stack(each, axis=-1).astype(np.float32)
    both = np.pad(both, (more[0], (0, levels.shape[1] // size - both.shape[1]), (0, 0)))
    scale_and_zero = torch.from_numpy(both).to(torch.bfloat16).transpose(0, 1).contiguous()
    return torch.from_numpy(np.ascontiguousarray(pairs)), scale_and_zero


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
