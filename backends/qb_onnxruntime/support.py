"""What ONNX Runtime can do, and with what caveat. Imports no framework."""

from typing import Final

from qb_cluster.contracts import FLOAT, Bits, Quantization, Scheme, Support
from qb_cluster.contracts.coverage import Handlings, Scope
from qb_cluster.quantization.vocabulary import Vocabulary, unknown_words

STORED_BITS = (2, 4, 8, 16)
"""Widths that ONNX has integer types for; any other would take the room of the next wider one."""

KNOWN: Final[Vocabulary] = {
    "number": ("integer", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"),
    "activations": ("none", "dynamic", "static"),
    "granularity": ("per_tensor", "per_channel", "per_group"),
    "weight_range": ("minmax", "mse", "signed_max"),
}
"""What this backend has heard of, by field of a scheme: anything else it would do wrongly."""

INT8 = 8
INT16 = 16
ARITHMETIC = {1: "float32 arithmetic", 4: "activations rounded to int8 inside the kernel"}
"""What the accuracy levels of MatMulNBits mean."""

NO_FLOAT_KERNEL = (2, 8)
"""Widths that MatMulNBits dequantizes at every call at level 1: 4 to 30 times slower than float."""

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
        "conv_transpose": "float",
        "embedding": "weights rounded",
        "recurrent": "weights rounded",
        "attention": "integers",
    },
    "static": {
        "linear": "integers",
        "conv": "integers",
        "conv_transpose": "weights rounded",
        "embedding": "weights rounded",
        "recurrent": "weights rounded",
        "attention": "integers",
    },
}
"""What becomes of each kind of layer in 8 bits; artifacts are held against it."""

SMALLEST_BLOCK = 16
"""MatMulNBits has a scale per 16, 32, 64, 128 or 256 inputs."""


def widths(quantization: Quantization) -> list[Bits]:
    """Give all bits that the scheme gives to layers, its usual ones first."""
    own = [Bits.parse(bits) for _, bits in quantization.scheme.layers if bits != FLOAT]
    return list(dict.fromkeys([quantization.bits, *own]))


def support(quantization: Quantization, accuracy_level: int) -> Support:
    """Tell whether this can be done. Every yes was run on onnxruntime 1.32."""
    scheme = quantization.scheme
    if unknown := unknown_words(scheme, KNOWN, "onnxruntime"):
        return Support(supported=False, reason=unknown)
    if quantization.execution == "simulated":
        return _simulation(quantization)
    refusals = [*_scheme_refusals(quantization)]
    if scheme.number == "integer":
        refusals += [reason for bits in widths(quantization) for reason in _refusals(scheme, bits)]
    for refused, reason in refusals:
        if refused:
            return Support(supported=False, reason=reason)
    caveats = (_caveat(scheme, bits, accuracy_level) for bits in widths(quantization))
    reason = "; ".join(dict.fromkeys(filter(None, caveats)))
    return Support(supported=True, reason=reason, scope=scheme.scope_or(SCOPE))


def _simulation(quantization: Quantization) -> Support:
    """Tell whether a scheme can be simulated."""
    scheme = quantization.scheme
    for refused, reason in (
        (not scheme.takes(quantization.bits), f"{scheme.name} does not take {quantization.bits}"),
        _dynamic_scope(scheme),
        (scheme.scope == "all", "only inputs and outputs of layers are simulated"),
    ):
        if refused:
            return Support(supported=False, reason=reason)
    return Support(supported=True, scope=scheme.scope_or(SCOPE))


def _dynamic_scope(scheme: Scheme) -> tuple[bool, str]:
    return (
        scheme.activations == "dynamic" and scheme.scope not in {None, "inputs"},
        f"onnxruntime finds ranges while running for inputs only, not '{scheme.scope}'",
    )


def _scheme_refusals(quantization: Quantization) -> tuple[tuple[bool, str], ...]:
    scheme, bits = quantization.scheme, quantization.bits
    return (
        (
            quantization.execution != "native",
            f"onnxruntime computes native or simulated, not '{quantization.execution}'",
        ),
        (
            scheme.weight_quantizer is not None,
            "onnxruntime stores weights by the common rule only; it simulates others",
        ),
        (not scheme.takes(bits), f"{scheme.name} does not take {bits}"),
        (
            len({each.activation for each in widths(quantization)}) > 1,
            (
                "onnxruntime gives all layers activations of one width; override the weights' bits "
                "(w4a8 among w8a8), or leave layers float"
            ),
        ),
        (
            scheme.weight_range == "signed_max" and scheme.activations == "static",
            (
                "onnxruntime's static quantizer takes positive weight scales only: it widens those "
                "too small for an int32 bias; use weight_range minmax or mse"
            ),
        ),
        _dynamic_scope(scheme),
        (
            scheme.number == "bf16",
            (
                "onnxruntime has no bfloat16 kernels for Conv, Gemm and MatMul on the CPU; it "
                "takes fp16, fp8 and w8"
            ),
        ),
        (
            scheme.number.startswith("fp8") and scheme.granularity == "per_group",
            "onnxruntime takes fp8 weights per_tensor or per_channel only",
        ),
    )


def _refusals(scheme: Scheme, bits: Bits) -> tuple[tuple[bool, str], ...]:
    return (
        (
            bits.weight not in STORED_BITS,
            f"ONNX has no {bits.weight}-bit integers; onnxruntime takes w2, w4, w8 and w16",
        ),
        (
            scheme.activations == "dynamic" and (bits.activation != INT8 or bits.weight > INT8),
            "onnxruntime finds ranges while running for w2a8, w4a8 and w8a8 only",
        ),
        (
            scheme.activations == "static" and bits.activation not in (INT8, INT16),
            "onnxruntime fixes activation ranges in 8 or 16 bits only (w8a8, w8a16, …)",
        ),
        (
            scheme.activations != "none" and scheme.granularity == "per_group",
            (
                "onnxruntime's integer kernels take a scale per tensor or per channel; it runs "
                "per_group with weight_only (w4, w8, …)"
            ),
        ),
    )


def _caveat(scheme: Scheme, bits: Bits, accuracy_level: int) -> str:
    if scheme.number == "fp16":
        return (
            "where the CPU has no float16 kernels (x86) weights and inputs are rounded to fp16 and "
            "computed on in float32: the file is half as large, and no faster"
        )
    if scheme.number != "integer":
        return "weights are dequantized when the file is opened; kernels are float32"
    widened = f"{bits.weight}-bit weights are widened to int8 when the file is opened"
    if scheme.activations == "none":
        return _weight_only_caveat(scheme, bits, accuracy_level)
    if scheme.activations == "dynamic":
        kernels = (
            "a range spans a layer's whole input, so a batch runs example by example; "
            "convolutions (ConvInteger) are slower than in float"
        )
        if not scheme.symmetric and scheme.granularity == "per_channel":
            kernels += ", and stay float where weights are affine per channel"
        return kernels if bits.weight == INT8 else f"{kernels}; {widened}"
    if INT16 in (bits.weight, bits.activation):
        return "16-bit values are quantized and dequantized around float kernels"
    return "" if bits.weight == INT8 else widened


def _weight_only_caveat(scheme: Scheme, bits: Bits, accuracy_level: int) -> str:
    opened = "weights are dequantized when the file is opened; kernels are float"
    if bits.weight > INT8 or (scheme.group_size or SMALLEST_BLOCK) % SMALLEST_BLOCK:
        return opened
    arithmetic = ARITHMETIC[accuracy_level]
    if accuracy_level == 1 and bits.weight in NO_FLOAT_KERNEL:
        arithmetic += f", slow for want of a {bits.weight}-bit kernel"
    return (
        f"linear layers run MatMulNBits at accuracy_level {accuracy_level} ({arithmetic}); "
        "convolutions are dequantized when the file is opened"
    )
