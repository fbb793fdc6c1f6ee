"""Simulated quantization: any scheme, any bit-width, computed in float."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from qb_cluster.catalog.value_digest import value_digest
from qb_cluster.contracts import Arrays, Artifact, Bits, Calibration, Quantization, Scheme
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_pytorch import calibration, checkpoint, cuda, layers

_KEPT: Final[KeptRanges[dict[str, tuple[float, int]]]] = KeptRanges()
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
    bits = layers.bits_of_layers(module, quantization)
    # Before the weights are rounded: the ranges are those of the float model.
    inputs = activations(module, quantization, bits, examples)
    rounded = rounded_weights(module, quantization.scheme, bits)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in rounded:
                parameter.copy_(rounded[name])
    multiplying = bits.keys() & layers.multiplying(module).keys()
    left = len(multiplying - inputs.keys()) if quantization.bits.activation is not None else 0
    notes = (f"inputs of {left} layers stay float: calibration never calls them",) if left else ()
    return layers.with_facts(
        checkpoint.store_simulated(module, set(rounded), inputs, notes, device),
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
        fallback_ops=layers.float_ops(module, quantization, bits),
    )


def activations(
    module: torch.nn.Module,
    quantization: Quantization,
    bits: Mapping[str, Bits],
    examples: Arrays | None,
) -> dict[str, Any]:
    """Give how each layer rounds its inputs, as ``fake_quantization.attach`` takes it.

    Args:
        module: the float model.
        quantization: scheme and bits.
        bits: of the layers that are quantized, by name.
        examples: calibration examples; given exactly when activations are static.
    """
    scheme = quantization.scheme
    asked = {name: bits[name] for name in layers.multiplying(module) if name in bits}
    if scheme.number in TORCH_NAMES:
        return {name: {"kind": "cast", "dtype": TORCH_NAMES[scheme.number]} for name in asked}
    if scheme.activations == "none":
        return {}
    if scheme.activations == "dynamic":
        symmetric = scheme.symmetric_activations
        return {
            name: {"kind": "dynamic", "bits": own.activation, "symmetric": symmetric}
            for name, own in asked.items()
        }
    if examples is None:
        raise ValueError("static activations need calibration examples")
    # Scales depend on more than ranges do, with any observer.
    widths = {name: own.activation for name, own in asked.items()}
    decisive = value_digest(module, widths, scheme.symmetric_activations)
    found = _KEPT.observed(
        lambda: calibration.input_qparams(module, examples, asked, quantization),
        model=decisive.encode(),
        examples=examples,
        calibration=quantization.calibration or Calibration(),
        bits=quantization.bits.activation,
        symmetric=scheme.symmetric_activations,
    )
    return {
        name: {
            "kind": "static",
            "scale": scale,
            "zero_point": zero_point,
            "bits": asked[name].activation,
        }
        for name, (scale, zero_point) in found.items()
    }


def rounded_weights(
    module: torch.nn.Module, scheme: Scheme, bits: Mapping[str, Bits]
) -> dict[str, torch.Tensor]:
    """Give the rounded weights of layers, by the parameter's name; tied ones once.

    Args:
        module: the float model; it is not changed.
        scheme: how weights are rounded.
        bits: of the layers that are quantized, by name.
    """
    return {
        name: torch.from_numpy(
            quantize_dequantize_weights(
                parameter.detach().to(torch.float32).numpy(), scheme, bits[layer], name=name
            )
        ).to(parameter.dtype)
        for name, (layer, parameter) in layers.weights(module, bits).items()
    }
