"""What ai-edge-quantizer 0.10 and LiteRT 2.3 can do, as measured on these versions."""

from typing import Final

from qb_cluster.contracts import Activations, Bits, Quantization, Support

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


def native_support(quantization: Quantization) -> Support:
    """Tell whether a quantization has kernels of its own here, why not, or with what caveat."""
    scheme, bits = quantization.scheme, quantization.bits
    if quantization.execution == "simulated":
        return Support(
            supported=False,
            reason="LiteRT only runs natively; the pytorch backend simulates any bit-width",
        )
    if scheme.weight_quantizer is not None:
        return Support(
            supported=False,
            reason=f"'{scheme.name}' brings its own weight arithmetic, for which LiteRT has no "
            "kernels; the pytorch backend simulates it",
        )
    available = ", ".join(
        str(Bits(weight, activation))
        for activation in ACTIVATION_BITS[scheme.activations]
        for weight in WEIGHT_BITS
    )
    if bits.activation not in ACTIVATION_BITS[scheme.activations]:
        return Support(
            supported=False,
            reason=f"LiteRT has no kernels for {bits} with activations '{scheme.activations}'; "
            f"available: {available}",
        )
    if bits.weight in WEIGHT_BITS:
        return Support(supported=True, reason="; ".join(_caveats(quantization)))
    if scheme.activations == "none":
        return Support(
            supported=True,
            reason="the recipe is accepted, but ai-edge-quantizer 0.10 is known to leave the "
            "weights float; the artifact is checked",
        )
    return Support(
        supported=False, reason=f"{_why_no_weights(quantization)}; available: {available}"
    )


def _why_no_weights(quantization: Quantization) -> str:
    """Say what goes wrong with other weight widths beside integer activations."""
    bits, activations = quantization.bits, quantization.scheme.activations
    if (bits.weight, activations) == (_QUARTER_BYTE, "dynamic"):
        return "LiteRT's 2-bit convolutions with dynamic activations return garbage"
    return (
        f"ai-edge-quantizer 0.10 leaves {bits.weight}-bit weights float beside {activations} "
        "activations"
    )


def _caveats(quantization: Quantization) -> list[str]:
    scheme, bits = quantization.scheme, quantization.bits
    caveats = []
    if bits.weight == _HALF_BYTE:
        caveats.append("depthwise and transposed convolutions stay float: there are no 4-bit ones")
    elif scheme.activations == "dynamic" and scheme.granularity == "per_tensor":
        caveats.append(
            "depthwise convolutions stay float: LiteRT's dynamic int8 kernel returns garbage for "
            "them when a tensor has one scale"
        )
    if bits.activation == _TWO_BYTES:
        caveats.append("16-bit activations run in slow reference kernels")
    return caveats
