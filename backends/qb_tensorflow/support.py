"""What TFLiteConverter of TensorFlow 2.21 can do, as measured, and what is simulated."""

from collections.abc import Iterator
from typing import Final

from qb_cluster.contracts import Activations, Bits, Quantization, Scheme, Support
from qb_cluster.contracts.coverage import LAYER_KINDS, Scope
from qb_cluster.quantization.vocabulary import Vocabulary, unknown_words

KNOWN: Final[Vocabulary] = {
    "number": ("integer", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"),
    "activations": ("none", "dynamic", "static"),
    "granularity": ("per_tensor", "per_channel", "per_group"),
    "weight_range": ("minmax", "mse", "signed_max"),
}
"""What this backend has heard of, by field of a scheme: anything else it would do wrongly."""
_SIXTEEN: Final = 16
NATIVE: Final[dict[tuple[Activations, Bits], str]] = {
    ("dynamic", Bits(8, 8)): "weight tensors of fewer than 1,024 elements stay float",
    ("static", Bits(8, 8)): "",
    ("static", Bits(8, 16)): "16-bit activations are symmetric and run in slow reference kernels",
}
"""What has kernels by (activations, bits), with what a user of each must know."""
SCOPES: Final[dict[Activations, Scope]] = {"dynamic": "inputs", "static": "all"}
"""Which activations the converter rounds."""
GRAPH_ALONE: Final = (
    "a SavedModel is a graph without layers, which cannot be simulated; give the Keras model "
    "itself, or quantize it natively"
)


def support(quantization: Quantization) -> Support:
    """Tell whether a quantization can be done, why not, or with what caveat."""
    scheme = quantization.scheme
    if unknown := unknown_words(scheme, KNOWN, "tensorflow"):
        return Support(supported=False, reason=unknown)
    if scheme.weights != LAYER_KINDS:
        return Support(supported=False, reason="this backend quantizes all kinds of layers alike")
    if quantization.execution == "simulated":
        if scheme.scope not in {None, "inputs"}:
            return Support(supported=False, reason="only the inputs of layers are simulated here")
        scope: Scope | None = None if scheme.activations == "none" else "inputs"
        return Support(supported=True, reason="Keras models only, not SavedModels", scope=scope)
    refusal = next(_refusals(quantization), None)
    if refusal is not None:
        return Support(supported=False, reason=refusal)
    scope = SCOPES.get(scheme.activations)
    return Support(supported=True, reason=_caveat(quantization), scope=scope)


def refusal_of_kind(kind: str, quantization: Quantization) -> str:
    """Tell why a model of a kind cannot be quantized so; nothing where ``support`` is right."""
    if kind == "saved_model" and quantization.execution == "simulated":
        return GRAPH_ALONE
    return ""


def _caveat(quantization: Quantization) -> str:
    if quantization.scheme.number == "fp16":
        return "weights are stored in fp16, and LiteRT computes in float32 on a CPU"
    return NATIVE[quantization.scheme.activations, quantization.bits]


def _refusals(quantization: Quantization) -> Iterator[str]:
    """Give what speaks against it, most telling first."""
    scheme, bits = quantization.scheme, quantization.bits
    if scheme.weight_quantizer is not None:
        yield (
            f"'{scheme.name}' brings its own weight arithmetic, for which LiteRT has no kernels: "
            "simulate it"
        )
    if scheme.number == "bf16":
        yield "TFLiteConverter 2.21 accepts bfloat16 and leaves the model float: use fp16"
    elif scheme.number not in {"integer", "fp16"}:
        yield f"TFLiteConverter has no {scheme.number}: use fp16, or simulate it"
    if scheme.number != "integer":
        return
    if scheme.activations == "none":
        yield (
            "TFLiteConverter has no weight-only mode: beside 8-bit weights it quantizes "
            "activations too (available: dynamic w8a8, static w8a8, w8a16)"
        )
    elif (scheme.activations, bits) not in NATIVE:
        widths = (str(width) for activations, width in NATIVE if activations == scheme.activations)
        yield (
            f"TFLiteConverter has no {bits} with {scheme.activations} activations "
            f"(available: {', '.join(widths)})"
        )
    yield from _refused_options(scheme, bits)
    calibration = quantization.calibration
    if calibration is not None and calibration.observer != "minmax":
        yield (
            f"TFLiteConverter calibrates by minmax only, not by {calibration.observer}: simulate it"
        )


def _refused_options(scheme: Scheme, bits: Bits) -> Iterator[str]:
    if scheme.granularity == "per_group":
        yield "TFLiteConverter scales weights per_channel or per_tensor, not per_group"
    if not (scheme.symmetric and scheme.narrow_range and scheme.weight_range == "minmax"):
        yield (
            "TFLiteConverter's weights are symmetric, of narrow range, and scaled to their "
            "largest: simulate others"
        )
    if scheme.symmetric_activations and bits.activation != _SIXTEEN:
        yield "LiteRT's 8-bit activations are affine: symmetric ones are simulated, or 16-bit"
    if scheme.scope not in {None, SCOPES.get(scheme.activations)}:
        yield (
            f"TFLiteConverter rounds {SCOPES[scheme.activations]} beside {scheme.activations} "
            f"ranges, not {scheme.scope}: simulate it"
        )
    if scheme.layers:
        yield "TFLiteConverter quantizes all layers alike: simulate layers of their own bits"
