"""What ai-edge-quantizer 0.10 and LiteRT 2.3 can do, as measured on these versions."""

from collections.abc import Iterator
from typing import Final

from qb_cluster.contracts import FLOAT, Activations, Bits, Quantization, Scheme, Support
from qb_cluster.contracts.coverage import Handlings, Scope
from qb_cluster.quantization.vocabulary import Vocabulary, unknown_words

KNOWN: Final[Vocabulary] = {
    "number": ("integer", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"),
    "activations": ("none", "dynamic", "static"),
    "granularity": ("per_tensor", "per_channel", "per_group"),
    "weight_range": ("minmax", "mse", "signed_max"),
}
"""What this backend has heard of, by field of a scheme: anything else it would do wrongly."""
_QUARTER_BYTE: Final = 2
_HALF_BYTE: Final = 4
_BYTE: Final = 8
_TWO_BYTES: Final = 16
WEIGHT_BITS: Final = (_HALF_BYTE, _BYTE)
ACTIVATION_BITS: Final[dict[Activations, tuple[int | None, ...]]] = {
    "none": (None,),
    "dynamic": (_BYTE,),
    "static": (_BYTE, _TWO_BYTES),
}
SYMMETRIC_ACTIVATION_BITS: Final = (_TWO_BYTES,)
"""Widths at which LiteRT's kernels know no zero point."""
SCOPE: Final[Scope] = "layers"
"""Which activations static recipes round unless the scheme says."""
HANDLES: Final[Handlings] = {
    "none": {
        "linear": "weights rounded",
        "conv": "weights rounded",
        "conv_transpose": "weights rounded",
        "embedding": "weights rounded",
        "recurrent": "weights rounded",
        "attention": "weights rounded",
    },
    "dynamic": {
        "linear": "integers",
        "conv": "integers",
        "conv_transpose": "integers",
        "embedding": "weights rounded",
        "recurrent": "integers",
        "attention": "integers",
    },
    "static": {
        "linear": "integers",
        "conv": "integers",
        "conv_transpose": "integers",
        "embedding": "weights rounded",
        "recurrent": "integers",
        "attention": "integers",
    },
}
"""What becomes of each kind of layer in 8 bits; artifacts are held against it."""
GROUP_SIZES: Final = (32, 64, 128, 256)

_STAYS_FLOAT: Final = (
    "the recipe is accepted, but ai-edge-quantizer 0.10 is known to leave the weights float; the "
    "artifact is checked"
)


def simulated_support(quantization: Quantization) -> Support:
    """Tell whether a quantization can be computed in float here, and why not."""
    scheme = quantization.scheme
    if unknown := unknown_words(scheme, KNOWN, "tflite"):
        return Support(supported=False, reason=unknown)
    scope = scheme.scope_or(SCOPE)
    if scope == "all":
        return Support(supported=False, reason="only inputs and outputs of layers are simulated")
    if scope == "layers" and scheme.activations == "dynamic":
        reason = "ranges are found while running for the inputs of layers only"
        return Support(supported=False, reason=reason)
    return Support(supported=True, scope=scope)


def native_support(quantization: Quantization, *, allow_known_broken: bool = False) -> Support:
    """Tell whether a quantization has kernels of its own here, why not, or with what caveat.

    Args:
        quantization: what is asked for.
        allow_known_broken: say yes, with a caveat, to what is known to return garbage.
    """
    if unknown := unknown_words(quantization.scheme, KNOWN, "tflite"):
        return Support(supported=False, reason=unknown)
    if reason := next(_obstacles(quantization, allow_known_broken), None):
        return Support(supported=False, reason=reason)
    reason = "; ".join(_caveats(quantization, allow_known_broken))
    return Support(supported=True, reason=reason, scope=quantization.scheme.scope_or(SCOPE))


def _obstacles(quantization: Quantization, allow_known_broken: bool) -> Iterator[str]:
    """Give what stands in the way, most general first."""
    scheme, bits = quantization.scheme, quantization.bits
    if scheme.weight_quantizer is not None:
        yield (
            f"'{scheme.name}' brings its own weight arithmetic, for which LiteRT has no kernels; "
            "it can be simulated"
        )
    if scheme.number == "fp16":
        return
    if scheme.number != "integer":
        yield f"LiteRT has no kernels for {scheme.number}; available: fp16, and integers"
    yield from _scheme_obstacles(scheme)
    yield from _bits_obstacles(scheme, bits, allow_known_broken)
    for pattern, layer in scheme.layers:
        if layer != FLOAT and Bits.parse(layer).weight not in WEIGHT_BITS:
            yield f"layers '{pattern}': {layer} has no kernels here; available: {_grid(scheme)}"
        if layer != FLOAT:
            for reason in _bits_obstacles(scheme, Bits.parse(layer), allow_known_broken):
                yield f"layers '{pattern}': {reason}"


def _scheme_obstacles(scheme: Scheme) -> Iterator[str]:
    """Give what no bit-width mends."""
    if scheme.activations == "dynamic" and scheme.scope not in {None, "inputs"}:
        yield f"LiteRT finds ranges while running for inputs only, not '{scheme.scope}'"
    if scheme.activations == "static" and scheme.scope == "inputs":
        yield "LiteRT's integer kernels round inputs and outputs: activations: layers, or all"
    if not scheme.symmetric and scheme.activations != "none":
        yield (
            "LiteRT multiplies integer activations by symmetric weights only; affine weights are "
            "available as weight_only w4 and w8"
        )
    if scheme.granularity == "per_group":
        if scheme.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            yield f"ai-edge-quantizer has no groups of {scheme.group_size}; available: {sizes}"
        if scheme.activations == "static":
            yield (
                "LiteRT has no kernels for groups beside static activations; available: "
                "per_channel and per_tensor, or dynamic w4a8 per group"
            )
        if not scheme.symmetric:
            yield (
                "ai-edge-quantizer has symmetric groups only; affine weights are available "
                "per_channel and per_tensor"
            )
    if scheme.weight_range == "signed_max":
        yield (
            "ai-edge-quantizer makes weight scales from ranges, so they are positive; available: "
            "weight_range minmax and mse"
        )
    if scheme.activations == "dynamic" and scheme.symmetric_activations:
        yield (
            "LiteRT's dynamic kernels choose the activation range themselves; symmetric "
            "activations are available with static"
        )


def _bits_obstacles(scheme: Scheme, bits: Bits, allow_known_broken: bool) -> Iterator[str]:
    """Give what stands in the way of these bits, for the model or for a layer."""
    available = f"available: {_grid(scheme)}"
    if bits.activation not in ACTIVATION_BITS[scheme.activations]:
        yield (
            f"LiteRT has no kernels for {bits} with activations '{scheme.activations}'; {available}"
        )
    if scheme.symmetric and not scheme.narrow_range and bits.weight != _HALF_BYTE:
        yield (
            f"LiteRT's kernels take {bits.weight}-bit weights without their lowest integer; the "
            "full range is available for w4"
        )
    if bits.weight in WEIGHT_BITS or scheme.activations == "none":
        return
    if (bits.weight, scheme.activations) == (_QUARTER_BYTE, "dynamic"):
        if scheme.granularity == "per_group":
            yield f"LiteRT's interpreter refuses 2-bit weights in groups; {available}"
        elif not allow_known_broken:
            yield (
                "LiteRT's 2-bit convolutions with dynamic activations return garbage; "
                f"{available} (the backend's option allow_known_broken runs them all the same)"
            )
        return
    yield (
        f"ai-edge-quantizer 0.10 leaves {bits.weight}-bit weights float beside "
        f"{scheme.activations} activations; {available}"
    )


def _grid(scheme: Scheme) -> str:
    """List the bits that have kernels."""
    return ", ".join(
        str(Bits(weight, activation))
        for activation in ACTIVATION_BITS[scheme.activations]
        for weight in WEIGHT_BITS
    )


def _caveats(quantization: Quantization, allow_known_broken: bool) -> Iterator[str]:
    scheme, bits = quantization.scheme, quantization.bits
    if scheme.number == "fp16":
        yield "weights are stored in half precision, and computed with in single precision"
        return
    if bits.weight not in WEIGHT_BITS and scheme.activations == "none":
        yield _STAYS_FLOAT
        return
    if scheme.granularity == "per_group":
        if (scheme.activations, bits.weight) != ("dynamic", _HALF_BYTE):
            yield _STAYS_FLOAT
            return
        yield "convolutions stay float: only fully-connected layers have kernels for groups"
    elif bits.weight == _QUARTER_BYTE:
        yield "known to return garbage for convolutions; depthwise and transposed ones stay float"
    elif bits.weight == _HALF_BYTE:
        yield "depthwise and transposed convolutions stay float: there are no 4-bit ones"
    elif scheme.activations == "dynamic" and scheme.granularity == "per_tensor":
        yield (
            "LiteRT's dynamic int8 kernel is known to return garbage for depthwise convolutions "
            "when a tensor has one scale"
            if allow_known_broken
            else "depthwise convolutions stay float: LiteRT's dynamic int8 kernel returns garbage "
            "for them when a tensor has one scale"
        )
    is_narrow = scheme.symmetric and scheme.narrow_range
    if scheme.weight_range == "mse" and is_narrow and bits.weight < _BYTE:
        yield f"clipped weights may take -{2 ** (bits.weight - 1)}, beyond the narrow range"
    if bits.activation == _TWO_BYTES:
        yield "16-bit activations are symmetric, and run in slow reference kernels"
