"""Native static int8: PT2E quantization, lowered to oneDNN's int8 convolutions and matmuls.

The steps are torchao's own (https://docs.pytorch.org/ao/stable/pt2e_quantization/): export,
``prepare_pt2e`` with ``X86InductorQuantizer``, calibrate, ``convert_pt2e``. The artifact is the
converted program; opening it lowers it, and the lowered graph runs op by op, so that no C++
compiler is needed.
"""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from qb_cluster.causes import refusals
from qb_cluster.contracts import (
    Arrays,
    Artifact,
    ArtifactFacts,
    Bits,
    Executable,
    Quantization,
    Scheme,
)
from qb_cluster.errors import UnsupportedError
from qb_pytorch import calibration, checkpoint, layers, lowering, modules, program_file
from qb_pytorch.support import BYTE, SCOPE
from qb_pytorch.tables import put_integer_tables
from qb_pytorch.third_party import quiet

FORMAT = "pt2"
_ADVICE = "write execution: simulated, or make the model's forward traceable by torch.export"


class _Positional(torch.nn.Module):
    """A model whose inputs and outputs are tensors by position, as lowering demands."""

    PREFIX = "model."

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        return tuple(modules.named_outputs(modules.call(self.model, named)).values())


def quantize(
    module: torch.nn.Module,
    baseline: Artifact,
    quantization: Quantization,
    examples: Arrays,
) -> Artifact:
    """Quantize linear layers and 2-d convolutions, activations to 8 bits.

    Of 1-d convolutions the quantizer takes those that a ``torch.nn.ReLU`` follows.

    Args:
        module: a copy of the float model.
        baseline: what was counted when it was stored.
        quantization: static, wNa8.
        examples: calibration examples.

    Raises:
        UnsupportedError: ``torch.export`` cannot trace the model, or this CPU has no kernels.
        PlugInError: a pattern of the scheme's ``layers`` matches no layer.
        NonFiniteError: weights, or activations of calibration, are NaN or infinite.
    """
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        raise UnsupportedError(
            f"static int8 kernels need an x86 CPU and a torch built with oneDNN, and this is "
            f"{platform.machine()}; write execution: simulated"
        )
    module, macs = checkpoint.attention_spelled_out(module, baseline)
    bits = layers.bits_of_layers(module, quantization)
    parameters = modules.parameter_count(module)
    _spell_out_padding(module)
    _add_biases(module)
    what = "PT2E cannot trace or quantize this model for batches of any size"
    with refusals(what, _ADVICE), quiet(), torch.no_grad():
        from torchao.utils import should_reduce_range

        activation_bits = 7 if should_reduce_range(torch.device("cpu")) else BYTE
        quantizer = _quantizer(module, quantization, bits, activation_bits)
        data, tables = _convert(module, modules.tensors(examples), quantizer, quantization, bits)
        notes: tuple[str, ...] = ()
        effective = None
        if activation_bits < BYTE:
            notes = ("7-bit activations: this CPU has no VNNI",)
            effective = Bits(quantization.bits.weight, activation_bits)
        facts = _facts(module, data, quantization, macs, tables, notes)
        facts = replace(facts, parameters=parameters, effective_bits=effective)
    return Artifact(data, FORMAT, facts)


def _spell_out_padding(module: torch.nn.Module) -> None:
    """Write ``padding="same"`` and ``"valid"`` as numbers, which alone the quantizer knows."""
    for layer in module.modules():
        if not isinstance(layer, torch.nn.Conv2d) or layer.padding_mode != "zeros":
            continue
        spans = [
            dilation * (size - 1)
            for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        if layer.padding == "valid":
            layer.padding = (0, 0)
        elif layer.padding == "same" and not any(span % 2 for span in spans):
            layer.padding = tuple(span // 2 for span in spans)


def _add_biases(module: torch.nn.Module) -> None:
    """Give linear layers a bias of zeros: of inputs with three axes, torch lowers no others."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and layer.bias is None:
            layer.bias = torch.nn.Parameter(layer.weight.new_zeros(layer.out_features))


def open_program(artifact: Artifact, *, is_lowered: bool = True) -> Executable:
    """Make a stored program run: lowered to integer kernels, or as it is stored."""
    stored = program_file.load(artifact.data)
    if is_lowered:
        graph = lowering.lower(stored.program, stored.sample)
    else:
        graph = stored.program.module(check_guards=False)

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = graph(*(inputs[name] for name in stored.sample))
        return dict(zip(stored.outputs, outputs, strict=True))

    return modules.executable(run)


def _convert(
    module: torch.nn.Module,
    examples: dict[str, torch.Tensor],
    quantizer: Any,
    quantization: Quantization,
    bits: Mapping[str, Bits],
) -> tuple[bytes, int]:
    """Trace, calibrate and convert; give the stored program, and how many tables it looks up."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # Two examples, because a batch of one would be taken for a constant.
    sample = {name: torch.cat([tensor[:1], tensor[:1]]) for name, tensor in examples.items()}
    outputs = list(modules.named_outputs(modules.call(module, sample)))
    exported = lowering.export(_Positional(module, list(sample)), tuple(sample.values()))
    prepared = prepare_pt2e(exported.module(), quantizer)
    for batch in calibration.batches(examples, calibration.BATCH):
        prepared(*batch.values())
    converted = convert_pt2e(prepared)
    prefix = _Positional.PREFIX
    tables = put_integer_tables(converted, module, prefix, quantization.scheme, bits)
    _drop_float_originals(converted)
    program = lowering.export(converted, tuple(sample.values()))
    return program_file.dump(program, sample, outputs), tables


def _quantizer(
    module: torch.nn.Module,
    quantization: Quantization,
    bits: Mapping[str, Bits],
    activation_bits: int,
) -> Any:
    """Quantize the inputs and weights of linear and convolution layers, and nothing else.

    As ``get_default_x86_inductor_quantization_config``, but with ranges from QuantBench's
    observers in place of histograms, and no floor of 2⁻¹² under the scales.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    from qb_pytorch.pt2e_observers import ActivationObserver

    scheme = quantization.scheme
    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=2**activation_bits - 1,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=ActivationObserver.with_args(
            make=calibration.observers(quantization),
            bits=activation_bits,
            symmetric=scheme.symmetric_activations,
        ),
    )

    def config(own: Bits) -> Any:
        return QuantizationConfig(activations, activations, _weight_spec(scheme, own), None)

    functional = torch.nn.functional
    quantizer = X86InductorQuantizer()
    for function in (functional.linear, functional.conv1d, functional.conv2d):
        quantizer.set_function_type_qconfig(function, config(quantization.bits))
    for name in layers.multiplying(module):
        own = bits.get(name)
        if own != quantization.bits:
            inner = f"{_Positional.PREFIX}{name}".removesuffix(".")
            quantizer.set_module_name_qconfig(inner, None if own is None else config(own))
    return quantizer


def _weight_spec(scheme: Scheme, bits: Bits) -> Any:
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    from qb_pytorch.pt2e_observers import WeightObserver

    limit = 2 ** (bits.weight - 1) - 1
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-limit if scheme.narrow_range else -limit - 1,
        quant_max=limit,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=WeightObserver.with_args(scheme=scheme, bits=bits),
    )


def _drop_float_originals(converted: Any) -> None:
    """Delete the float weights that a converted graph still owns but no longer reads."""
    read = {node.target for node in converted.graph.find_nodes(op="get_attr")}
    for name, _ in list(converted.named_parameters()):
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(converted.get_submodule(owner), attribute)


def _facts(
    module: torch.nn.Module,
    data: bytes,
    quantization: Quantization,
    macs: layers.Macs,
    tables: int,
    notes: tuple[str, ...],
) -> ArtifactFacts:
    """Count what a stored program holds, buffers of the float model left out, and run it once.

    So many of its integers are ``tables``, which multiply nothing.

    Batch normalization is folded into the convolution before it, so that some parameters may
    have no counterpart.
    """
    stored = program_file.load(data)
    own = {f"{_Positional.PREFIX}{name}" for name, _ in module.named_buffers()}
    held = {**stored.program.state_dict, **stored.program.constants}
    tensors = [tensor for name, tensor in held.items() if name not in own]
    integers = [tensor for tensor in tensors if tensor.dtype == torch.int8]
    left = sum(tensor.is_floating_point() and tensor.ndim >= 2 for tensor in tensors)
    if left:
        notes += (f"{left} of {left + len(integers)} weight tensors stay float",)
    narrow = {own.weight for own in layers.bits_of_layers(module, quantization).values()} - {8}
    if narrow:
        listed = " and ".join(str(width) for width in sorted(narrow))
        notes += (f"weights of {listed} bits are stored in 8 bits each",)
    lowered = lowering.lower(stored.program, stored.sample)
    kernels = lowering.kernels(lowered, stored.sample)
    products = len(integers) - tables
    if products > kernels.integer:
        slow = products - kernels.integer
        notes += (f"{slow} of {products} int8 layers compute in float",)
    wanted = Counter(
        type(layer).__name__
        for name, layer in layers.multiplying(module).items()
        if quantization.layer_bits(name) is None
    )
    quantized = _quantized(module, integers)
    integer_macs = kernels.integer_macs / len(next(iter(stored.sample.values())))
    return ArtifactFacts(
        parameters=modules.parameter_count(module),
        parameter_bytes=sum(tensor.nbytes for tensor in tensors),
        quantized_parameters=sum(module.get_parameter(name).numel() for name in quantized),
        notes=notes,
        integer_mac_share=integer_macs / max(1, macs.total),
        # The quantizer takes products with weights alone.
        integer_layer_mac_share=macs.share_of_weighted(
            integer_macs, layers.left_float(module, quantization)
        ),
        fallback_ops=tuple(sorted((kernels.float_ops - wanted).keys())),
        coverage=layers.coverage_of(module, quantization, quantized),
        scope=quantization.scheme.scope_or(SCOPE),
    )


def _quantized(module: torch.nn.Module, integers: Sequence[torch.Tensor]) -> set[str]:
    """Name the weights that a program holds in integers, by shape and content.

    A program has forgotten what its tensors were called.
    """
    left = dict(module.named_parameters())
    found = set()
    for codes in integers:
        alike = [name for name, one in left.items() if one.shape == codes.shape]
        if alike:
            name = (
                alike[0] if len(alike) == 1 else max(alike, key=lambda n: _likeness(codes, left[n]))
            )
            found.add(name)
            del left[name]
    return found


def _likeness(codes: torch.Tensor, weight: torch.Tensor) -> float:
    """Give the mean cosine of rows, whose scales and signs batch normalization may have changed."""
    rows = (tensor.detach().flatten(1).to(torch.float32) for tensor in (codes, weight))
    return float(torch.nn.functional.cosine_similarity(*rows).abs().mean())
