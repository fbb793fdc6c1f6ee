"""What a scheme covers: which kinds of layers, and which of the tensors around them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Share:
    """How much of something was quantized.

    Attributes:
        done: parameters that were.
        total: parameters that there are, ``done`` included.
    """

    done: int
    total: int


Coverage = Mapping[LayerKind, Share]
"""Parameters of weights by the kind of their layer; kinds that a model lacks are left out."""


def coverage(weights: Iterable[tuple[LayerKind, int, bool]]) -> dict[LayerKind, Share]:
    """Add up weights.

    Args:
        weights: kind of layer, parameters, and whether they are quantized, of each weight.
    """
    done: dict[LayerKind, int] = {}
    total: dict[LayerKind, int] = {}
    for kind, count, is_quantized in weights:
        total[kind] = total.get(kind, 0) + count
        done[kind] = done.get(kind, 0) + count * is_quantized
    return {kind: Share(done[kind], total[kind]) for kind in LAYER_KINDS if kind in total}


def covered_share(found: Coverage, kinds: Iterable[LayerKind]) -> float | None:
    """Give the share of the weights of some kinds that is quantized; ``None`` if there are none."""
    shares = [found[kind] for kind in kinds if kind in found]
    total = sum(share.total for share in shares)
    return sum(share.done for share in shares) / total if total else None
