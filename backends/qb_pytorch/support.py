"""What this backend can do, and why it cannot do the rest. Imports no torch."""

from typing import Final

from qb_cluster.contracts import FLOAT, Bits, Quantization, Scheme, Support

IN_FLOAT: Final = "weights are stored in integers and multiplied in float"
LINEAR_ONLY: Final = "torchao has this for Linear layers only: convolution weights stay float"
_CAVEATS: Final = {
    "none": f"{IN_FLOAT}; Conv1d and Conv3d stay float",
    "dynamic": f"{LINEAR_ONLY}; activation ranges are one per row, not per example",
    "static": "",
}
_FP8: Final = f"weights are stored in fp8 and multiplied in float; {LINEAR_ONLY}"
_FLOAT_CAVEATS: Final = {"fp16": "", "bf16": "", "fp8_e4m3": _FP8, "fp8_e5m2": _FP8}
_STORED: Final = (
    "torch packs 4 bits or fewer for Linear layers with outputs divisible by 16 and inputs by 32, "
    "and stores 8 bits a weight elsewhere"
)
BYTE: Final = 8


def support(quantization: Quantization) -> Support:
    """Tell whether this backend does it, with the reason or the caveat."""
    if quantization.execution == "simulated":
        return Support(supported=True)
    scheme = quantization.scheme
    own = {Bits.parse(bits) for _, bits in scheme.layers if bits != FLOAT}
    widths = sorted({quantization.bits, *own}, key=str)
    refusals = filter(None, (_refusal(scheme, bits) for bits in widths))
    if refusal := next(refusals, None):
        return Support(supported=False, reason=refusal)
    if scheme.number != "integer":
        return Support(supported=True, reason=_FLOAT_CAVEATS[scheme.number])
    caveats = [_CAVEATS[scheme.activations]]
    if any(bits.weight < BYTE for bits in widths):
        stored = _STORED if scheme.activations == "none" else f"stored in {BYTE} bits a weight"
        caveats.append(stored)
    return Support(supported=True, reason="; ".join(filter(None, caveats)))


def _refusal(scheme: Scheme, bits: Bits) -> str:
    """Give the reason why no kernel does it; empty where one does."""
    refusal = ""
    if scheme.weight_quantizer is not None:
        refusal = f"'{scheme.name}' brings weight arithmetic of its own, which no kernel has"
    elif scheme.number != "integer":
        if scheme.number.startswith("fp8") and scheme.granularity == "per_group":
            refusal = "torchao's Float8Tensor scales rows or tensors, not groups"
    elif bits.weight > BYTE:
        refusal = f"torch and torchao hold integer weights of 2 to 8 bits, not {bits}"
    elif scheme.activations == "none":
        pass
    elif bits.activation != BYTE:
        refusal = f"the CPU kernels of torch and torchao take 8-bit activations, not {bits}"
    elif not scheme.symmetric:
        refusal = "torch's int8 kernels take symmetric weights only"
    elif scheme.granularity == "per_group":
        refusal = "torch's int8 kernels take one weight scale per channel or tensor, not per group"
    return refusal
