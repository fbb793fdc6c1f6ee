"""Integers of 4 bits or fewer in a file: two to a byte, and a byte each once it is opened.

ATen has a kernel that multiplies them as they lie, ``_weight_int4pack_mm_for_cpu``. In float32,
which models here compute in, it is scalar code: milliseconds of one layer, one thread of a Xeon
with AMX, torch 2.13, with weights of 1,536 × 384 (outputs × inputs):

========  =======  ==================  =================  =========================
rows      float32  int8, this scheme   ATen's 4-bit, f32  ATen's 4-bit, bfloat16
========  =======  ==================  =================  =========================
2,048     18.4     34.9                3,701              47.0
32        0.47     0.78                71                 0.71
1         0.11     0.36                1.7                0.07
========  =======  ==================  =================  =========================

In bfloat16 it would round activations, which the scheme does not ask for. So the integers are kept
in half a byte where they are stored, and multiplied as int8 ones are.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

BITS: Final = 4
_HELD_IN: Final = "qdata"
"""What torchao's tensors of whole bytes call their integers."""


def halve(
    state: Mapping[str, Any], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Take the integers out of some of a state's tensors, and pack them; tied ones once.

    Args:
        state: of a module.
        names: of torchao's tensors with int8 ``qdata`` of -8 … 7 and an even last axis.

    Returns:
        The state, whose integers are now one zero that stands for all; and the pairs by name.
    """
    emptied = dict(state)
    packed: dict[int, torch.Tensor] = {}
    pairs: dict[str, torch.Tensor] = {}
    for name in names:
        integers = getattr(state[name], _HELD_IN)
        key = integers.data_ptr()
        if key not in packed:
            packed[key] = pack(integers)
        pairs[name] = packed[key]
        blank = torch.zeros((), dtype=torch.int8).expand(integers.shape)
        emptied[name] = _with_integers(state[name], blank)
    return emptied, pairs


def whole(state: Mapping[str, Any], pairs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Put the integers back that ``halve`` took out, a byte each; tied ones once."""
    filled = dict(state)
    unpacked: dict[int, torch.Tensor] = {}
    for name, pair in pairs.items():
        key = pair.data_ptr()
        if key not in unpacked:
            unpacked[key] = unpack(pair)
        filled[name] = _with_integers(state[name], unpacked[key])
    return filled


def parts(tensor: Any, pairs: torch.Tensor) -> list[torch.Tensor]:
    """Give what a tensor that ``halve`` emptied is stored as: pairs, scales and zero points."""
    names, _ = tensor.__tensor_flatten__()
    others = (getattr(tensor, name) for name in names if name != _HELD_IN)
    return [pairs, *(other for other in others if other is not None)]


def pack(integers: torch.Tensor) -> torch.Tensor:
    """Pack int8 of -8 … 7, the earlier one of a pair in the lower half of an unsigned byte."""
    halves = integers.contiguous().view(torch.uint8)
    return halves[..., ::2] & 15 | halves[..., 1::2] << BITS


def unpack(pairs: torch.Tensor) -> torch.Tensor:
    """Undo ``pack``; shifting signed bytes to the right keeps the sign."""
    lower, upper = (pairs << BITS).view(torch.int8) >> BITS, pairs.view(torch.int8) >> BITS
    return torch.stack([lower, upper], dim=-1).flatten(-2)


def _with_integers(tensor: Any, integers: torch.Tensor) -> Any:
    """Give the same torchao tensor around other integers of the same shape."""
    names, context = tensor.__tensor_flatten__()
    parts = {name: getattr(tensor, name) for name in names} | {_HELD_IN: integers}
    return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
