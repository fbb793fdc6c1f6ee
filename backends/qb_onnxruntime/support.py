"""What ONNX Runtime can do natively, and with what caveat. Imports no framework."""

from qb_cluster.contracts import Quantization, Support

STORED_BITS = (2, 4, 8, 16)
"""Widths that ONNX has integer types for; any other would take the room of the next wider one."""

INT8 = 8
INT16 = 16
ARITHMETIC = {1: "float32 arithmetic", 4: "activations rounded to int8 inside the kernel"}
"""What the accuracy levels of MatMulNBits mean."""

NO_FLOAT_KERNEL = (2, 8)
"""Widths that MatMulNBits dequantizes at every call at level 1: 4 to 30 times slower than float."""


def support(quantization: Quantization, block_size: int, accuracy_level: int) -> Support:
    """Tell whether this can be done. Every yes was run on onnxruntime 1.32."""
    scheme, bits = quantization.scheme, quantization.bits
    refusals = (
        (
            quantization.execution == "simulated",
            "onnxruntime runs stored integers only; the pytorch backend simulates any bit-width",
        ),
        (
            scheme.weight_quantizer is not None,
            "onnxruntime rounds by the common rule only; the pytorch backend simulates others",
        ),
        (not scheme.takes(bits), f"{scheme.name} does not take {bits}"),
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
            "onnxruntime fixes activation ranges in 8 or 16 bits only",
        ),
    )
    for refused, reason in refusals:
        if refused:
            return Support(supported=False, reason=reason)
    return Support(supported=True, reason=_caveat(quantization, block_size, accuracy_level))


def _caveat(quantization: Quantization, block_size: int, accuracy_level: int) -> str:
    bits = quantization.bits
    widened = f"{bits.weight}-bit weights are widened to int8 when the file is opened"
    if quantization.scheme.activations == "none":
        if bits.weight > INT8:
            return "weights are dequantized when the file is opened; kernels are float"
        arithmetic = ARITHMETIC[accuracy_level]
        if accuracy_level == 1 and bits.weight in NO_FLOAT_KERNEL:
            arithmetic += f", slow for want of a {bits.weight}-bit kernel"
        return (
            f"linear layers run MatMulNBits, a scale per block of {block_size} inputs whatever the "
            f"granularity, at accuracy_level {accuracy_level} ({arithmetic}); convolutions are "
            "dequantized when the file is opened"
        )
    if quantization.scheme.activations == "dynamic":
        kernels = (
            "a range spans a layer's whole input, so a batch runs example by example; "
            "convolutions (ConvInteger) are slower than in float"
        )
        return kernels if bits.weight == INT8 else f"{kernels}; {widened}"
    if INT16 in (bits.weight, bits.activation):
        return "16-bit values are quantized and dequantized around float kernels"
    return "" if bits.weight == INT8 else widened
