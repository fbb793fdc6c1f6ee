"""The layers of a module: which can be quantized, to how many bits, and what they multiply."""

from collections.abc import Container, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from qb_cluster.catalog.layer_weights import layer_names, weight_names
from qb_cluster.contracts import Artifact, Bits, Quantization
from qb_cluster.contracts.coverage import Coverage, LayerKind, Scope, coverage
from qb_cluster.quantization.layer_patterns import bits_of, check_layer_patterns
from qb_pytorch import modules
from qb_pytorch.spelled_out import AttentionProjection, RecurrentProjection, spell_out
from qb_pytorch.weighted_macs import WeightedFlops

_KINDS: Final[tuple[tuple[tuple[type[torch.nn.Module], ...], LayerKind], ...]] = (
    ((AttentionProjection,), "attention"),
    ((RecurrentProjection,), "recurrent"),
    ((torch.nn.Linear,), "linear"),
    ((torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d), "conv"),
    (
        (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
        "conv_transpose",
    ),
    ((torch.nn.Embedding, torch.nn.EmbeddingBag), "embedding"),
)
"""Kinds of layers by their classes; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates of convolutions and matrix products, for one example.

    Attributes:
        total: of the whole model, attention and other products of activations included.
        layers: of every submodule that multiplies, by name; a parent counts its children's.
        weighted: of the products in ``total`` that have weights, see ``weighted_macs``;
            ``None`` where they were not counted.
    """

    total: int
    layers: Mapping[str, int]
    weighted: int | None = None

    def share_of_weighted(self, macs: float, left_float: Iterable[str] = ()) -> float | None:
        """Give what share ``macs`` are of ``weighted``, less those of layers meant to stay float.

        ``None`` where that is none or unknown.
        """
        if self.weighted is None:
            return None
        total = self.weighted - sum(self.layers.get(name, 0) for name in left_float)
        return macs / total if total > 0 else None


def multiplying(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Give the layers whose weights and inputs are quantized, by name: all but embeddings.

    ``torch.nn.MultiheadAttention`` reads the weights of its output projection without calling
    it, so that one is left out; see ``spelled_out``.
    """
    uncalled = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    return {
        name: layer
        for name, layer in module.named_modules()
        if kind_of(layer) not in {None, "embedding"} and not isinstance(layer, uncalled)
    }


def quantizable(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Give the layers whose weights can be quantized: ``multiplying`` ones, then embeddings.

    Layers whose weight is computed from other parameters (weight norm) are left out.
    """
    embeddings = {
        name: layer for name, layer in module.named_modules() if kind_of(layer) == "embedding"
    }
    return {
        name: layer
        for name, layer in {**multiplying(module), **embeddings}.items()
        if "weight" in dict(layer.named_parameters(recurse=False))
    }


def kind_of(layer: torch.nn.Module) -> LayerKind | None:
    """Give the kind of a layer; ``None`` for what has no weight of a known kind."""
    return next((kind for classes, kind in _KINDS if isinstance(layer, classes)), None)


def channel_axis(layer: torch.nn.Module) -> int:
    """Give the axis of a layer's weight that runs over output channels.

    A transposed convolution's weight is (inputs, outputs ÷ groups, …).
    """
    return 1 if kind_of(layer) == "conv_transpose" else 0


def bits_of_layers(module: torch.nn.Module, quantization: Quantization) -> dict[str, Bits]:
    """Give the bits of every layer that the scheme quantizes, by name; float ones are left out.

    Raises:
        PlugInError: a pattern of the scheme's ``layers`` matches no layer.
        UnsupportedError: layers that share a weight get different bits.
    """
    found = quantizable(module)
    # A rule for a layer that this backend leaves float, such as a recurrent one, is no mistake.
    check_layer_patterns(quantization.scheme, [*found, *layer_names(module)])
    sharing: dict[int, list[str]] = {}
    for name, layer in found.items():
        if kind_of(layer) in quantization.scheme.weights:
            sharing.setdefault(id(layer.weight), []).append(name)
    asked = {name: bits_of(names, quantization) for names in sharing.values() for name in names}
    return {name: bits for name in found if (bits := asked.get(name)) is not None}


def weights(
    module: torch.nn.Module, names: Iterable[str]
) -> dict[str, tuple[str, torch.nn.Parameter]]:
    """Give the weight parameters of layers, each once, however many layers are tied to it.

    Args:
        module: the model.
        names: layers, see ``quantizable``.

    Returns:
        By the parameter's first name in the model: the first of the layers, and the parameter.
    """
    owners: dict[int, str] = {}
    for name in names:
        owners.setdefault(id(module.get_submodule(name).weight), name)
    return {
        name: (owners[id(parameter)], parameter)
        for name, parameter in module.named_parameters()
        if id(parameter) in owners
    }


def count_macs(module: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> Macs:
    """Count what one example multiplies.

    Args:
        module: a float model, in evaluation mode.
        example: one example (axis 0 has length 1) of each input.
    """
    # What torch's counter lacks: attention on the CPU, and modules that fuse their children.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    attention = {on_cpu: _attention_flops}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # oneDNN runs a recurrent layer as one call, of which the counter knows nothing.
    module = spell_out(deepcopy(module)) if _has_recurrent(module) else module
    try:
        counter = FlopCounterMode(display=False, custom_mapping=attention)
        # Outside of torch's counter, so that both see the same products.
        weighted = WeightedFlops(example.values(), counter.flop_registry)
        with torch.no_grad(), weighted, counter:
            modules.call(module, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    prefix = f"{type(module).__name__}."
    found = {
        name.removeprefix(prefix): sum(flops.values()) // 2  # two operations to each MAC
        for name, flops in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }
    total = counter.get_total_flops() // 2
    # The model itself may be a layer.
    return Macs(total, {"": total, **found}, weighted.flops // 2)


def _has_recurrent(module: torch.nn.Module) -> bool:
    return any(isinstance(layer, torch.nn.RNNBase) for layer in module.modules())


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))


def float_ops(
    module: torch.nn.Module, quantization: Quantization, done: Iterable[str]
) -> tuple[str, ...]:
    """Give the kinds of layers that multiply in float although the scheme covers them, sorted.

    Args:
        module: the model.
        quantization: its scheme's ``layers`` say what may stay float.
        done: names of the layers that were quantized.
    """
    quantized = set(done)
    return tuple(
        sorted(
            {
                type(layer).__name__
                for name, layer in module.named_modules()
                if kind_of(layer) in quantization.scheme.weights
                and kind_of(layer) != "embedding"
                and name not in quantized
                and quantization.layer_bits(name) is not None
            }
        )
    )


def coverage_of(
    module: torch.nn.Module, quantization: Quantization, quantized: Container[str]
) -> dict[LayerKind, tuple[int, int]]:
    """Tell what a scheme covers of a model, and how much of it is quantized.

    Args:
        module: the float model, as it was written or spelled out.
        quantization: names kinds of layers, and layers that stay float.
        quantized: names of the parameters that are quantized.
    """
    return coverage(
        (kind, parameter.numel(), name in quantized)
        for name, parameter in module.named_parameters()
        if (kind := _kind_of_weight(module, name)) in quantization.scheme.weights
        and any(quantization.layer_bits(layer) is not None for layer in weight_names(module, name))
    )


def _kind_of_weight(module: torch.nn.Module, name: str) -> LayerKind | None:
    """Give the kind of layer that a parameter is the weight of, if it is one."""
    place, _, own = name.rpartition(".")
    owner = module.get_submodule(place)
    if isinstance(owner, torch.nn.MultiheadAttention):
        return "attention" if own.endswith("proj_weight") else None
    if isinstance(owner, torch.nn.RNNBase):
        return "recurrent" if own.startswith("weight_") else None
    if own != "weight":
        return None
    if isinstance(owner, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "attention"
    return kind_of(owner)


def left_float(module: torch.nn.Module, quantization: Quantization) -> list[str]:
    """Name the layers that the scheme leaves float."""
    covered = bits_of_layers(module, quantization)
    return [name for name in quantizable(module) if name not in covered]


def with_facts(
    artifact: Artifact,
    integer_mac_share: float | None,
    integer_layer_mac_share: float | None,
    fallback_ops: tuple[str, ...],
    covered: Coverage | None = None,
    scope: Scope | None = None,
) -> Artifact:
    """Add to an artifact's facts what only the arithmetic of its layers can tell."""
    facts = replace(
        artifact.facts,
        integer_mac_share=integer_mac_share,
        integer_layer_mac_share=integer_layer_mac_share,
        fallback_ops=fallback_ops,
        coverage=covered,
        scope=scope,
    )
    return replace(artifact, facts=facts)
