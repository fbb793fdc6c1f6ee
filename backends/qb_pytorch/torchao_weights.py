"""Native weights by torchao's tensors: integers or fp8, with or without dynamic activations.

The integers and scales are those of the reference arithmetic, so that a native cell and its
simulation differ by what the kernels do, and by nothing else. What holds them:

==================================  =========================================================
``Int4TilePackedTo4dTensor``        linear layers of 4 bits or fewer on a GPU, see ``tinygemm``
``Int8Tensor``                      linear layers: a byte a weight; alone computes in integers,
                                    with dynamic activations
``IntxUnpackedToInt8Tensor``        2-d convolutions, embeddings, and affine weights of linear
                                    layers: a byte a weight
``Float8Tensor``                    linear layers in fp8
==================================  =========================================================

On a CPU linear layers of 4 bits or fewer beside float activations are stored two weights to a byte,
see ``nibbles``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from qb_cluster.causes import cause
from qb_cluster.contracts import Artifact, Bits, Quantization, Scheme
from qb_cluster.errors import NonFiniteError, UnsupportedError
from qb_cluster.quantization.weights import IntegerWeights, quantize_weights
from qb_pytorch import checkpoint, cuda, layers, modules, nibbles, tinygemm
from qb_pytorch.support import SCOPE
from qb_pytorch.third_party import quiet

BYTE: Final = 8
INT8_MULTIPLE: Final = 8
"""cuBLAS multiplies int8 matrices whose inputs and outputs come in multiples of this."""
_FP8_CAPABILITY: Final = (8, 9)
_FP8: Final = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


def quantize(
    module: torch.nn.Module,
    baseline: Artifact,
    quantization: Quantization,
    device: str = cuda.CPU,
) -> Artifact:
    """Quantize weights, and inputs of linear layers while running where the scheme is dynamic.

    Args:
        module: a copy of the float model, on the CPU, changed in place.
        baseline: what was counted when it was stored.
        quantization: ``weight_only`` or ``dynamic`` integers, or fp8.
        device: where it will run.

    Raises:
        NonFiniteError: weights are NaN or infinite.
        PlugInError: a pattern of the scheme's ``layers`` matches no layer.
        UnsupportedError: the GPU is too old for it, or there is none.
    """
    scheme = quantization.scheme
    parameters = modules.parameter_count(module)
    macs = checkpoint.macs(baseline)
    if device == cuda.CPU:
        module, macs = checkpoint.attention_spelled_out(module, baseline)
    bits = layers.bits_of_layers(module, quantization)
    effective = None
    notes: list[str] = []
    with quiet():
        import torchao  # noqa: F401 chatters when it is first imported
        from torchao.utils import should_reduce_range

        if scheme.activations == "dynamic" and should_reduce_range(torch.device(device)):
            bits = {name: Bits(min(own.weight, 7), own.activation) for name, own in bits.items()}
            effective = Bits(min(quantization.bits.weight, 7), 7)
            notes.append("7-bit weights and activations: this CPU has no VNNI")
        if scheme.number != "integer" and device != cuda.CPU:
            cuda.require("fp8", _FP8_CAPABILITY)
        held = _replace_weights(module, scheme, bits, device)
        if device == cuda.CPU:
            _try(module, baseline)
    wider = [name for name, width in held.items() if bits[name].weight < width]
    if wider:
        asked, kept = {bits[name].weight for name in wider}, {held[name] for name in wider}
        notes.append(f"weights of {_listed(asked)} bits are stored in {_listed(kept)} bits each")
    quantized = set(layers.weights(module, held))
    content = checkpoint.Content(device=device, is_spelled_out=device == cuda.CPU)
    halved = [
        f"{name}.weight".removeprefix(".")
        for name, width in held.items()
        if width == nibbles.BITS and device == cuda.CPU
    ]
    share = 0.0
    layer_share: float | None = 0.0
    if scheme.activations == "dynamic":
        fewest = 1 if device == cuda.CPU else cuda.fewest_int8_rows()
        integer_macs, floats = _integer_macs(module, macs, held, fewest)
        share = integer_macs / max(1, macs.total)
        layer_share = macs.share_of_weighted(integer_macs, layers.left_float(module, quantization))
        if floats:
            notes.append(
                f"{floats} layers multiply one example's integers as floats: torch's int8 product "
                f"takes {fewest} rows or more on a GPU"
            )
    artifact = checkpoint.store(
        module,
        parameters,
        quantized,
        content,
        checkpoint.TORCHAO_FORMAT,
        tuple(notes),
        halved=halved,
    )
    fallback_ops = layers.float_ops(module, quantization, held)
    covered = layers.coverage_of(module, quantization, quantized)
    scope = scheme.scope_or(SCOPE)
    made = layers.with_facts(artifact, share, layer_share, fallback_ops, covered, scope)
    return replace(made, facts=replace(made.facts, effective_bits=effective))


def _try(module: torch.nn.Module, baseline: Artifact) -> None:
    """Run a model once: what reads a weight without its layer may do what torchao cannot.

    Raises:
        UnsupportedError: it does.
    """
    try:
        with torch.no_grad():
            modules.call(module, checkpoint.example(baseline))
    except NotImplementedError as error:
        raise UnsupportedError(
            f"torchao's tensors cannot do what this model does with a weight ({cause(error)}); "
            "leave that layer float under the scheme's layers, or write execution: simulated"
        ) from error


def _integer_macs(
    module: torch.nn.Module, macs: layers.Macs, held: Iterable[str], fewest_rows: int
) -> tuple[int, int]:
    """Give what an example multiplies in integers, and how many layers multiply floats."""
    found, floats = 0, 0
    for name in held:
        layer = macs.layers.get(name, 0)
        if layer >= fewest_rows * module.get_submodule(name).weight.numel() or fewest_rows == 1:
            found += layer
        else:
            floats += 1
    return found, floats


def _replace_weights(
    module: torch.nn.Module, scheme: Scheme, bits: Mapping[str, Bits], device: str
) -> dict[str, int]:
    """Replace the weights that torchao can hold; give the bits each is stored in, by layer."""
    kinds: tuple[type[torch.nn.Module], ...] = (torch.nn.Module,)
    if scheme.number != "integer":
        kinds = (torch.nn.Linear,)
    elif scheme.activations == "dynamic":
        kinds = (torch.nn.Linear, torch.nn.Embedding)
    tied: dict[tuple[int, bool], list[str]] = {}
    for name in bits:
        layer = module.get_submodule(name)
        # A table that is looked up has no activations to round.
        is_table = scheme.activations == "dynamic" and isinstance(layer, torch.nn.Embedding)
        if isinstance(layer, kinds):
            tied.setdefault((id(layer.weight), is_table), []).append(name)
    held: dict[str, int] = {}
    for names in tied.values():
        owners = [module.get_submodule(name) for name in names]
        packed = _packed(owners, scheme, bits[names[0]], names[0], device)
        if packed is None:
            continue
        tensor, width = packed
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        for owner, name in zip(owners, names, strict=True):
            owner.weight = parameter
            held[name] = width
    return held


def _packed(
    owners: list[torch.nn.Module], scheme: Scheme, bits: Bits, name: str, device: str
) -> tuple[torch.Tensor, int] | None:
    """Give the quantized weight and its bits when stored; ``None`` where torchao has no tensor."""
    weight = owners[0].weight.detach()
    if scheme.number != "integer":
        return _float8(weight, scheme, name), BYTE
    block = _block(weight.shape, scheme)
    if block is None or not all(_is_readable(owner) for owner in owners):
        return None
    if scheme.activations == "dynamic" and device != cuda.CPU and _is_odd(weight.shape):
        return None  # torchao would multiply it on the CPU, in the middle of everything
    integers = quantize_weights(weight.to(torch.float32).numpy(), scheme, bits, name=name)
    is_linear = all(isinstance(owner, torch.nn.Linear) for owner in owners)
    is_narrow = is_linear and scheme.activations == "none" and bits.weight <= nibbles.BITS
    width = BYTE
    if is_narrow and device == cuda.CPU and weight.shape[-1] % 2 == 0:
        width = nibbles.BITS
    if is_narrow and device != cuda.CPU:
        group = tinygemm.group(weight.shape, block)
        if group is not None:
            return tinygemm.pack(integers, group), tinygemm.BITS
    if is_linear and scheme.symmetric:
        return _int8(integers, scheme, block, weight.dtype, device), width
    return _intx(integers, scheme, bits.weight, block, weight.dtype), width


def _is_odd(shape: torch.Size) -> bool:
    return any(size % INT8_MULTIPLE for size in shape)


def _is_readable(owner: torch.nn.Module) -> bool:
    """Tell whether torchao's tensors can stand in for a layer's weight."""
    if isinstance(owner, torch.nn.Embedding):
        return owner.max_norm is None  # which would write to the weight
    return isinstance(owner, torch.nn.Linear | torch.nn.Conv2d)


def _block(shape: torch.Size, scheme: Scheme) -> tuple[int, ...] | None:
    """Give the block of weights that shares a scale; ``None`` where it is no box."""
    match scheme.granularity:
        case "per_tensor":
            return tuple(shape)
        case "per_channel":
            return (1, *shape[1:])
    group = scheme.group_size or 0
    whole = len(shape) == 2 and shape[1] % group == 0
    return (1, group) if whole else None


def _per_block(values: np.ndarray[Any, Any], shape: torch.Size, block: tuple[int, ...]) -> Any:
    """Take one of the values of each block, as a tensor with a block on each axis position."""
    full = np.broadcast_to(values, tuple(shape))
    return torch.from_numpy(full[tuple(slice(None, None, step) for step in block)].copy())


def _int8(
    integers: IntegerWeights,
    scheme: Scheme,
    block: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
) -> torch.Tensor:
    """Hold symmetric weights of a linear layer, a byte each."""
    from torchao.quantization import MappingType, PerRow
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import (
        Int8Tensor,
        QuantizeTensorToInt8Kwargs,
    )
    from torchao.utils import should_reduce_range

    activations = None
    if scheme.activations == "dynamic":
        activations = QuantizeTensorToInt8Kwargs(
            granularity=PerRow(),
            # Affine by default, as everywhere in QuantBench: torchao's own default, symmetric,
            # leaves half of the levels unused behind a ReLU.
            mapping_type=MappingType.SYMMETRIC
            if scheme.symmetric_activations
            else MappingType.ASYMMETRIC,
            reduce_range=should_reduce_range(torch.device(device)),
        )
    shape = torch.Size(integers.integers.shape)
    return Int8Tensor(
        torch.from_numpy(integers.integers.astype(np.int8)),
        _per_block(integers.scale, shape, block),
        list(block),
        dtype,
        act_quant_kwargs=activations,
    )


def _intx(
    integers: IntegerWeights,
    scheme: Scheme,
    bits: int,
    block: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Hold weights of any shape, a byte each."""
    from torchao.quantization.quantize_.workflows import IntxUnpackedToInt8Tensor

    offset = 0 if scheme.symmetric else 2 ** (bits - 1)  # to signed integers
    shape = torch.Size(integers.integers.shape)
    return IntxUnpackedToInt8Tensor(
        torch.from_numpy((integers.integers - offset).astype(np.int8)),
        _per_block(integers.scale, shape, block),
        _per_block((integers.zero_point - offset).astype(np.int8), shape, block),
        getattr(torch, f"int{bits}"),
        block,
        dtype,
        None,
    )


def _float8(weight: torch.Tensor, scheme: Scheme, name: str) -> torch.Tensor:
    """Hold weights of a linear layer in fp8, scaled so that the largest is the format's own."""
    from torchao.quantization import PerRow, PerTensor
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows import Float8Tensor

    if not weight.isfinite().all():
        raise NonFiniteError(
            f"{name}: some of the {weight.numel()} weights are NaN or infinite; load or train "
            "the model anew"
        )
    granularity = PerTensor() if scheme.granularity == "per_tensor" else PerRow()
    # Not AUTO, which hands a CPU's weights to a GPU kernel where there is one.
    return Float8Tensor.from_hp(
        weight,
        getattr(torch, _FP8[scheme.number]),
        granularity,
        kernel_preference=KernelPreference.TORCH,
    )


def _listed(numbers: set[int]) -> str:
    return " and ".join(str(number) for number in sorted(numbers))
