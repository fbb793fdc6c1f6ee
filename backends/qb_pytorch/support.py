"""What this backend can do, and why it cannot do the rest. Imports no torch."""

from typing import Final

from qb_cluster.contracts import FLOAT, Bits, Quantization, Scheme, Support
from qb_cluster.contracts.coverage import Handlings, Scope
from qb_cluster.quantization.vocabulary import Vocabulary, unknown_words

KNOWN: Final[Vocabulary] = {
    "number": ("integer", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"),
    "activations": ("none", "dynamic", "static"),
    "granularity": ("per_tensor", "per_channel", "per_group"),
    "weight_range": ("minmax", "mse", "signed_max"),
}
"""What this backend has heard of, by field of a scheme: anything else it would do wrongly."""
CPU: Final = "cpu"
GPU: Final = "cuda:0"
"""Whoever starts this process lets it see one GPU, which CUDA then calls 0."""
IN_FLOAT: Final = "weights are stored in integers and multiplied in float"
LINEAR_ONLY: Final = "torchao has this for Linear layers only: convolution weights stay float"
_CAVEATS: Final = {
    "none": f"{IN_FLOAT}; Conv1d and Conv3d stay float",
    "dynamic": f"{LINEAR_ONLY}; activation ranges are one per row, not per example",
    "static": "",
}
_GPU_CAVEATS: Final = {
    **_CAVEATS,
    "dynamic": f"{_CAVEATS['dynamic']}; layers whose inputs and outputs do not both come in "
    "multiples of 8 stay float, and 16 rows or fewer may be multiplied as floats",
}
_FP8: Final = f"weights are stored in fp8 and multiplied in float; {LINEAR_ONLY}"
_FLOAT_CAVEATS: Final = {"fp16": "", "bf16": "", "fp8_e4m3": _FP8, "fp8_e5m2": _FP8}
_STORED: Final = (
    "weights of Linear layers with an even number of inputs are stored in 4 bits if they have 4 or "
    "fewer, others in 8; all are widened to int8 when the artifact is opened: torch's 4-bit kernel "
    "is up to 200 times slower than float32"
)
_GPU_STORED: Final = (
    "torch packs 4 bits or fewer for Linear layers with inputs divisible by 32, about 512 at "
    "least, multiplied in bfloat16 on a GPU of compute capability 8.0, and stores 8 bits a weight "
    "elsewhere"
)
_GPU_FP8: Final = f"{_FP8}; needs a GPU of compute capability 8.9"
BYTE: Final = 8
SCOPE: Final[Scope] = "inputs"
"""Which activations are rounded unless the scheme says."""
HANDLES: Final[Handlings] = {
    "none": {
        "linear": "weights rounded",
        "conv": "weights rounded",
        "conv_transpose": "float",
        "embedding": "weights rounded",
        "recurrent": "float",
        "attention": "weights rounded",
    },
    "dynamic": {
        "linear": "integers",
        "conv": "float",
        "conv_transpose": "float",
        "embedding": "weights rounded",
        "recurrent": "float",
        "attention": "integers",
    },
    "static": {
        "linear": "integers",
        "conv": "integers",
        "conv_transpose": "float",
        "embedding": "weights rounded",
        "recurrent": "float",
        "attention": "integers",
    },
}
"""What becomes of each kind of layer in 8 bits; artifacts are held against it."""
DYNAMIC_INPUTS: Final = "ranges are found while running for the inputs of layers only"


def support(quantization: Quantization, device: str = CPU) -> Support:
    """Tell whether this backend does it on a device, with the reason or the caveat."""
    scheme = quantization.scheme
    if unknown := unknown_words(scheme, KNOWN, "pytorch"):
        return Support(supported=False, reason=unknown)
    scope = scheme.scope_or(SCOPE)
    if quantization.execution == "simulated":
        return _simulation(scheme, scope)
    if scope not in {None, SCOPE}:
        reason = f"torch's int8 kernels round the inputs of layers only, not '{scope}'"
        return Support(supported=False, reason=reason)
    own = {Bits.parse(bits) for _, bits in scheme.layers if bits != FLOAT}
    widths = sorted({quantization.bits, *own}, key=str)
    on_cpu = device == CPU
    refusals = filter(None, (_refusal(scheme, bits, on_cpu=on_cpu) for bits in widths))
    if refusal := next(refusals, None):
        return Support(supported=False, reason=refusal)
    if scheme.number != "integer":
        caveat = _FLOAT_CAVEATS[scheme.number]
        return Support(supported=True, reason=_GPU_FP8 if caveat and not on_cpu else caveat)
    caveats = [(_CAVEATS if on_cpu else _GPU_CAVEATS)[scheme.activations]]
    if any(bits.weight < BYTE for bits in widths):
        packed = _STORED if on_cpu else _GPU_STORED
        stored = packed if scheme.activations == "none" else f"stored in {BYTE} bits a weight"
        caveats.append(stored)
    return Support(supported=True, reason="; ".join(filter(None, caveats)), scope=scope)


def _simulation(scheme: Scheme, scope: Scope | None) -> Support:
    """Tell whether a scheme can be simulated."""
    if scope == "all":
        return Support(supported=False, reason="only inputs and outputs of layers are simulated")
    if scope == "layers" and scheme.activations == "dynamic":
        return Support(supported=False, reason=DYNAMIC_INPUTS)
    return Support(supported=True, scope=scope)


def _refusal(scheme: Scheme, bits: Bits, *, on_cpu: bool) -> str:
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
    elif scheme.activations == "static" and not on_cpu:
        refusal = "PT2E's static int8 kernels are for CPUs; on a GPU it can be simulated"
    elif bits.activation != BYTE:
        kernels = "CPU" if on_cpu else "GPU"
        refusal = f"the {kernels} kernels of torch and torchao take 8-bit activations, not {bits}"
    elif not scheme.symmetric:
        refusal = "torch's int8 kernels take symmetric weights only"
    elif scheme.granularity == "per_group":
        refusal = "torch's int8 kernels take one weight scale per channel or tensor, not per group"
    return refusal
