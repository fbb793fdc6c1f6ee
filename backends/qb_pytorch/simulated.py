"""Simulated quantization: any scheme, any bit-width, computed in float."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import torch

from qb_cluster.catalog.value_digest import value_digest
from qb_cluster.contracts import Arrays, Artifact, Bits, Calibration, Quantization, Scheme
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_pytorch import checkpoint, cuda, layers, modules
from qb_pytorch.calibration import Place, qparams_at
from qb_pytorch.following import outputs
from qb_pytorch.spelled_out import spell_out
from qb_pytorch.support import SCOPE

_KEPT: Final[KeptRanges[dict[Place, tuple[float, int]]]] = KeptRanges()
TORCH_NAMES: Final = {"fp16": "float16", "bf16": "bfloat16"}


def quantize(
    module: torch.nn.Module,
    quantization: Quantization,
    examples: Arrays | None,
    device: str = cuda.CPU,
) -> Artifact:
    """Round the weights once, and record how activations will be rounded.

    Args:
        module: a copy of the float model, on the CPU, changed in place.
        quantization: scheme and bits.
        examples: calibration examples for static activation ranges.
        device: where it will run. The CPU calibrates for all, so that ranges are the same.

    Raises:
        PlugInError: the scheme's own weight quantizer returns something else than weights, or
            a pattern of its ``layers`` matches no layer.
        NonFiniteError: weights, or activations of calibration, are NaN or infinite.
    """
    module = spell_out(module)
    bits = layers.bits_of_layers(module, quantization)
    # Before the weights are rounded: the ranges are those of the float model.
    rounding = activations(module, quantization, bits, examples)
    rounded = rounded_weights(module, quantization.scheme, bits)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in rounded:
                parameter.copy_(rounded[name])
    multiplying = bits.keys() & layers.multiplying(module).keys()
    left = len(multiplying - rounding.inputs.keys()) if quantization.bits.activation else 0
    notes = (f"inputs of {left} layers stay float: calibration never calls them",) if left else ()
    made = checkpoint.store_simulated(module, set(rounded), rounding, notes, device)
    facts = replace(
        made.facts,
        fallback_ops=layers.float_ops(module, quantization, bits),
        coverage=layers.coverage_of(module, quantization, rounded),
        scope=quantization.scheme.scope_or(SCOPE),
    )
    return replace(made, facts=facts)


@dataclass(frozen=True, slots=True)
class Rounding:
    """How layers round their activations, by name, as ``fake_quantization.attach`` takes it."""

    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


def activations(
    module: torch.nn.Module,
    quantization: Quantization,
    bits: Mapping[str, Bits],
    examples: Arrays | None,
) -> Rounding:
    """Give how each layer rounds its inputs, and where the scheme says so its output.

    Args:
        module: the float model, spelled out.
        quantization: scheme and bits.
        bits: of the layers that are quantized, by name.
        examples: calibration examples; given exactly when activations are static.
    """
    scheme = quantization.scheme
    asked = {name: bits[name] for name in layers.multiplying(module) if name in bits}
    if scheme.number in TORCH_NAMES:
        cast = {"kind": "cast", "dtype": TORCH_NAMES[scheme.number]}
        return Rounding(dict.fromkeys(asked, cast))
    if scheme.activations == "none":
        return Rounding()
    if scheme.activations == "dynamic":
        symmetric = scheme.symmetric_activations
        return Rounding(
            {
                name: {"kind": "dynamic", "bits": own.activation, "symmetric": symmetric}
                for name, own in asked.items()
            }
        )
    if examples is None:
        raise ValueError("static activations need calibration examples")
    widths = {name: own.activation or 0 for name, own in asked.items()}
    places = [Place(name, width) for name, width in widths.items()]
    if scheme.scope_or(SCOPE) == "layers":
        first = modules.tensors({name: array[:1] for name, array in examples.items()})
        places += [
            Place(output.module, widths[name], name, clip=output.clip)
            for name, output in outputs(module, widths, first).items()
        ]
    # Scales depend on more than ranges do, with any observer.
    decisive = value_digest(
        module, [asdict(place) for place in places], scheme.symmetric_activations
    )
    found = _KEPT.observed(
        lambda: qparams_at(module, examples, places, quantization),
        model=decisive.encode(),
        examples=examples,
        calibration=quantization.calibration or Calibration(),
        bits=quantization.bits.activation,
        symmetric=scheme.symmetric_activations,
    )
    rounding = Rounding()
    for place, (scale, zero_point) in found.items():
        given = {"kind": "static", "scale": scale, "zero_point": zero_point, "bits": place.bits}
        if place.output_of is None:
            rounding.inputs[place.module] = given
        else:
            rounding.outputs[place.output_of] = (place.module, place.clip, given)
    return rounding


def rounded_weights(
    module: torch.nn.Module, scheme: Scheme, bits: Mapping[str, Bits]
) -> dict[str, torch.Tensor]:
    """Give the rounded weights of layers, by the parameter's name; tied ones once.

    Args:
        module: the float model; it is not changed.
        scheme: how weights are rounded.
        bits: of the layers that are quantized, by name.
    """
    rounded = {}
    for name, (layer, parameter) in layers.weights(module, bits).items():
        axis = layers.channel_axis(module.get_submodule(layer))
        weights = parameter.detach().to(torch.float32).movedim(axis, 0).numpy()
        found = quantize_dequantize_weights(weights, scheme, bits[layer], name=name)
        own = torch.from_numpy(found).movedim(0, axis).contiguous()
        rounded[name] = own.to(parameter.dtype)
    return rounded
