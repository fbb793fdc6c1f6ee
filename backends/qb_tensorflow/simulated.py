"""Simulated quantization of Keras models: any scheme, any bit-width, computed in float."""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

from qb_cluster.contracts import Arrays, Artifact, Bits, Calibration, NumberFormat, Quantization
from qb_cluster.errors import UnsupportedError
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_cluster.quantization.layer_patterns import check_layer_patterns
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_tensorflow import fake_quantization, keras_file
from qb_tensorflow.layers import KINDS, Weights, named_layers, round_weights
from qb_tensorflow.support import GRAPH_ALONE

_KEPT: Final[KeptRanges[dict[str, Any]]] = KeptRanges()
_CASTS: Final[dict[NumberFormat, str]] = {"fp16": "float16", "bf16": "bfloat16"}
"""Formats that inputs of layers are rounded to as well as weights."""


def quantize(
    baseline: Artifact, quantization: Quantization, calibration: Arrays | None
) -> Artifact:
    """Round the weights once, and record how the inputs of layers will be rounded.

    Args:
        baseline: the float artifact.
        quantization: scheme and bits, which layers may have of their own.
        calibration: examples for static activation ranges.

    Raises:
        NonFiniteError: weights, or activations of calibration examples, are NaN or infinite.
        PlugInError: the scheme's own weight quantizer returns something else than weights, or
            a pattern of its ``layers`` matches no layer.
        UnsupportedError: the model is a SavedModel, or has no layer that is quantized.
    """
    if baseline.format != keras_file.FORMAT:
        raise UnsupportedError(GRAPH_ALONE)
    model = keras_file.load(baseline.data)
    layers = named_layers(model)
    check_layer_patterns(quantization.scheme, layers)
    asked = {name: quantization.layer_bits(name) for name in layers}
    bits = {name: width for name, width in asked.items() if width is not None}
    if not bits:
        raise UnsupportedError(
            f"there is nothing to quantize: of the {len(layers)} layers of the kinds "
            f"{', '.join(KINDS)}, the scheme leaves all float"
        )
    activations = _activations(baseline, quantization, calibration, bits)
    scheme = quantization.scheme
    rounded = 0
    for name, width in bits.items():

        def rounding(weights: Weights, kernel: str, width: Bits = width) -> Weights:
            return quantize_dequantize_weights(weights, scheme, width, name=kernel)

        rounded += round_weights(layers[name], name, rounding)
    facts = replace(
        baseline.facts,
        parameter_bytes=None,
        quantized_parameters=rounded,
        notes=_notes(model, [layers[name] for name in bits]),
    )
    return Artifact(keras_file.dump(model, activations), keras_file.FORMAT, facts)


def _activations(
    baseline: Artifact,
    quantization: Quantization,
    calibration: Arrays | None,
    bits: Mapping[str, Bits],
) -> dict[str, Any] | None:
    """Give what ``fake_quantization.attach`` takes; ``None`` where inputs stay float."""
    scheme = quantization.scheme
    if (cast := _CASTS.get(scheme.number)) is not None:
        return {name: {"cast": cast} for name in bits}
    widths = {name: width.activation or 0 for name, width in bits.items()}
    match scheme.activations:
        case "none":
            return None
        case "dynamic":
            symmetric = scheme.symmetric_activations
            return {name: {"bits": width, "symmetric": symmetric} for name, width in widths.items()}
        case "static":
            assert calibration is not None
            # Scales depend on more than ranges do, with any observer.
            symmetric = scheme.symmetric_activations
            decisive = f"{blake2b(baseline.data).hexdigest()} {widths} {symmetric}"
            return _KEPT.observed(
                lambda: fake_quantization.static_activations(
                    # One of its own: it keeps the observers.
                    keras_file.load(baseline.data),
                    quantization,
                    calibration,
                    widths,
                ),
                model=decisive.encode(),
                examples=calibration,
                calibration=quantization.calibration or Calibration(),
                bits=quantization.bits.activation,
                symmetric=symmetric,
            )


def _notes(model: Any, rounded: list[Any]) -> tuple[str, ...]:
    """Say which weight tensors (of two or more axes) stay float."""
    mine = {id(weight) for layer in rounded for weight in layer.weights}
    weights = [weight for weight in model.weights if len(weight.shape) > 1]
    left = [weight for weight in weights if id(weight) not in mine]
    notes = [f"{len(left)} of {len(weights)} weight tensors stay float"] if left else []
    if any(type(layer).__name__.startswith("Separable") for layer in rounded):
        notes.append("between the two halves of a separable convolution activations stay float")
    return tuple(notes)
