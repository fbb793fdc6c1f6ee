"""What a scheme covers: which kinds of layers, and which of the tensors around them."""

import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

LayerKind = Literal["linear", "conv", "conv_transpose", "embedding", "recurrent", "attention"]
"""Kinds of layers by what they do with their weights: ``attention`` is the projections of a layer
that holds its own, such as ``torch.nn.MultiheadAttention``; those that a model writes out are
``linear``."""

LAYER_KINDS: Final[tuple[LayerKind, ...]] = get_args(LayerKind)

Scope = Literal["inputs", "layers", "all"]
"""Which activations are rounded: the ``inputs`` of layers; inputs and outputs of ``layers``, to
which the bias, the batch normalization and the ReLU that follow belong; or ``all`` tensors."""

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

Handling = Literal["integers", "weights rounded", "float"]
"""What becomes of a kind of layer: it computes with integers, it computes in float with weights
that were rounded, or it stays as it was."""

Handlings = Mapping[str, Mapping[LayerKind, Handling]]
"""By what a scheme does to activations (``none``, ``dynamic``, ``static``) and kind of layer."""

WHOLE: Final = 0.9
"""A cell that quantized less of what its scheme covers is no proof of the scheme."""

Coverage = Mapping[LayerKind, tuple[int, int]]
"""By kind of layer: how many parameters of weights are quantized, and how many the scheme covers.
Kinds of which it covers nothing are left out."""


def coverage(weights: Iterable[tuple[LayerKind, int, bool]]) -> dict[LayerKind, tuple[int, int]]:
    """Add up the weights that a scheme covers.

    Args:
        weights: kind of layer, parameters, and whether they are quantized, of each.
    """
    done = dict.fromkeys(LAYER_KINDS, 0)
    total = dict.fromkeys(LAYER_KINDS, 0)
    for kind, count, is_quantized in weights:
        total[kind] += count
        done[kind] += count * is_quantized
    return {kind: (done[kind], total[kind]) for kind in LAYER_KINDS if total[kind]}


def covered_share(found: Coverage) -> float | None:
    """Give the share of the covered weights that is quantized; ``None`` if none are covered."""
    total = sum(count for _, count in found.values())
    return sum(done for done, _ in found.values()) / total if total else None


def partial_reason(covered: float | None, integer: float | None) -> str:
    """Say that a cell quantized a part of what its scheme covers; nothing where it did all.

    Args:
        covered: share of the covered weights that is quantized; ``None`` where unknown.
        integer: share of the covered multiply-accumulates that run in integers; ``None`` where
            unknown, and where they are not meant to.
    """
    if covered is not None and covered < WHOLE:
        return f"{_percent(covered)} of the weights quantized"
    if integer is not None and integer < WHOLE:
        return f"{_percent(integer)} of MACs in integers"
    return ""


def _percent(share: float) -> str:
    return f"{math.floor(100 * share)} %"
