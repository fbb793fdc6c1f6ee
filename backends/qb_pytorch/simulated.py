"""Simulated quantization: any scheme, any bit-width, computed in float."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays, Artifact, Quantization, Scheme
from qb_cluster.errors import PlugInError
from qb_cluster.quantization.affine import affine_qparams, quantize_dequantize_symmetric
from qb_pytorch import checkpoint, fake_quantization


def quantize(
    module: torch.nn.Module, quantization: Quantization, calibration: Arrays | None
) -> Artifact:
    """Round the weights once, and record how activations will be rounded.

    Args:
        module: a copy of the float model, changed in place.
        quantization: scheme and bits.
        calibration: examples for static activation ranges.

    Raises:
        PlugInError: the scheme's own weight quantizer returns something else than weights.
    """
    bits = quantization.bits
    activations: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    if bits.activation is not None:
        # Before the weights are rounded: the ranges are those of the float model.
        activations, notes = _activations(module, bits.activation, calibration)
    rounded = _round_weights(module, quantization.scheme, bits.weight)
    return checkpoint.store_simulated(module, rounded, activations, notes)


def _activations(
    module: torch.nn.Module, bits: int, calibration: Arrays | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give what ``fake_quantization.attach`` takes, and notes."""
    names = fake_quantization.layers(module)
    if calibration is None:
        return {"bits": bits, "layers": dict.fromkeys(names)}, ()
    ranges = fake_quantization.input_ranges(module, calibration)
    qparams = {name: affine_qparams(*ends, bits) for name, ends in ranges.items()}
    left = len(names) - len(qparams)
    notes = (f"inputs of {left} layers stay float: calibration never calls them",) if left else ()
    return {"bits": bits, "layers": qparams}, notes


def _round_weights(module: torch.nn.Module, scheme: Scheme, bits: int) -> set[str]:
    """Round the weights of linear, convolution and embedding layers; give their names."""
    owners = list(fake_quantization.layers(module).values())
    owners += [layer for layer in module.modules() if isinstance(layer, torch.nn.Embedding)]
    # By identity: a tied weight is rounded once, under its first name.
    weights = {id(weight) for layer in owners for weight in _own_weight(layer)}
    rounded = set()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if id(parameter) in weights:
                values = parameter.to(torch.float32).numpy().copy()
                parameter.copy_(torch.from_numpy(_round(values, scheme, bits, name)))
                rounded.add(name)
    return rounded


def _own_weight(layer: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Give the layer's weight, unless it is computed from other parameters (weight norm)."""
    return [own for name, own in layer.named_parameters(recurse=False) if name == "weight"]


def _round(
    weights: NDArray[np.float32], scheme: Scheme, bits: int, name: str
) -> NDArray[np.float32]:
    if scheme.weight_quantizer is None:
        axis = 0 if scheme.granularity == "per_channel" else None
        return quantize_dequantize_symmetric(weights, bits, axis)
    shape = weights.shape
    rounded = np.asarray(scheme.weight_quantizer(weights, bits))
    if rounded.shape != shape or rounded.dtype.kind != "f":
        raise PlugInError(
            f"the weight quantizer of scheme '{scheme.name}' turned '{name}', float32 of shape "
            f"{shape}, into {rounded.dtype} of shape {rounded.shape}; return the dequantized "
            "weights in the same shape"
        )
    return rounded.astype(np.float32)
