"""Native static int8: PT2E quantization, lowered to oneDNN's int8 convolutions and matmuls.

The steps are torchao's own (https://docs.pytorch.org/ao/stable/pt2e_quantization/): export,
``prepare_pt2e`` with ``X86InductorQuantizer``, calibrate, ``convert_pt2e``. The artifact is the
converted program; opening it lowers it, and the lowered graph runs op by op, so that no C++
compiler is needed.
"""

import platform
from collections.abc import Sequence
from typing import Any

import torch

from qb_cluster.contracts import Arrays, Artifact, ArtifactFacts, Executable
from qb_cluster.errors import UnsupportedError
from qb_pytorch import lowering, modules, program_file
from qb_pytorch.fake_quantization import CALIBRATION_BATCH, batches
from qb_pytorch.third_party import quiet

FORMAT = "pt2"


class _Positional(torch.nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A model whose inputs and outputs are tensors by position, as lowering demands."""

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        return tuple(modules.named_outputs(modules.call(self.model, named)).values())


def quantize(module: torch.nn.Module, calibration: Arrays) -> Artifact:
    """Quantize linear layers and 2-d convolutions to w8a8, weights per channel.

    Of 1-d convolutions the quantizer takes those that a ``torch.nn.ReLU`` follows.

    Args:
        module: a copy of the float model.
        calibration: examples whose true minimum and maximum fix each activation's range.

    Raises:
        UnsupportedError: ``torch.export`` cannot trace the model, or this CPU has no kernels.
    """
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        raise UnsupportedError(
            f"static int8 kernels need an x86 CPU and a torch built with oneDNN, and this is "
            f"{platform.machine()}; write execution: simulated"
        )
    examples = modules.tensors(calibration)
    try:
        with quiet(), torch.no_grad():
            from torchao.utils import should_reduce_range

            levels = 128 if should_reduce_range(torch.device("cpu")) else 256
            data = _convert(module, examples, levels)
            notes = () if levels == 256 else ("7-bit activations: this CPU has no VNNI",)
            return Artifact(data, FORMAT, _facts(module, data, notes))
    except Exception as error:
        story = str(error).strip().partition("\n")[0]
        raise UnsupportedError(
            f"PT2E cannot trace or quantize this model for batches of any size "
            f"({type(error).__name__}: {story}); write execution: simulated, or make the model's "
            "forward traceable by torch.export"
        ) from error


def open_program(artifact: Artifact) -> Executable:
    """Lower a stored program and make it run."""
    stored = program_file.load(artifact.data)
    lowered = lowering.lower(stored.program, stored.sample)

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = lowered(*(inputs[name] for name in stored.sample))
        return dict(zip(stored.outputs, outputs, strict=True))

    return modules.executable(run)


def _convert(module: torch.nn.Module, examples: dict[str, torch.Tensor], levels: int) -> bytes:
    """Trace, calibrate and convert; give the stored program."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # Two examples, because a batch of one would be taken for a constant.
    sample = {name: torch.cat([tensor[:1], tensor[:1]]) for name, tensor in examples.items()}
    outputs = list(modules.named_outputs(modules.call(module, sample)))
    exported = lowering.export(_Positional(module, list(sample)), tuple(sample.values()))
    prepared = prepare_pt2e(exported.module(), _quantizer(levels))
    for batch in batches(examples, CALIBRATION_BATCH):
        prepared(*batch.values())
    converted = convert_pt2e(prepared)
    _drop_float_originals(converted)
    program = lowering.export(converted, tuple(sample.values()))
    return program_file.dump(program, sample, outputs)


def _quantizer(levels: int) -> Any:
    """Quantize the inputs and weights of linear and convolution layers, and nothing else.

    As ``get_default_x86_inductor_quantization_config``, but with true min-max ranges in place
    of histograms, the narrow weight range ±127 of the reference arithmetic, and no floor of
    2⁻¹² under the scales.
    """
    from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=levels - 1,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=MinMaxObserver,
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
    )
    config = QuantizationConfig(activations, activations, weights, None)
    functional = torch.nn.functional
    quantizer = X86InductorQuantizer()
    for function in (functional.linear, functional.conv1d, functional.conv2d):
        quantizer.set_function_type_qconfig(function, config)
    return quantizer


def _drop_float_originals(converted: Any) -> None:
    """Delete the float weights that a converted graph still owns but no longer reads."""
    read = {node.target for node in converted.graph.find_nodes(op="get_attr")}
    for name, _ in list(converted.named_parameters()):
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(converted.get_submodule(owner), attribute)


def _facts(module: torch.nn.Module, data: bytes, notes: tuple[str, ...]) -> ArtifactFacts:
    """Count what a stored program holds, buffers of the float model left out, and lower it once.

    Batch normalization is folded into the convolution before it, so that some parameters may
    have no counterpart.
    """
    stored = program_file.load(data)
    own = {f"model.{name}" for name, _ in module.named_buffers()}
    held = {**stored.program.state_dict, **stored.program.constants}
    tensors = [tensor for name, tensor in held.items() if name not in own]
    integers = [tensor for tensor in tensors if tensor.dtype == torch.int8]
    left = sum(tensor.is_floating_point() and tensor.ndim >= 2 for tensor in tensors)
    if left:
        notes += (f"{left} of {left + len(integers)} weight tensors stay float",)
    kernels = lowering.int8_kernels(lowering.lower(stored.program, stored.sample))
    if kernels < len(integers):
        notes += (f"{len(integers) - kernels} of {len(integers)} int8 layers compute in float",)
    return ArtifactFacts(
        parameters=modules.parameter_count(module),
        parameter_bytes=sum(tensor.nbytes for tensor in tensors),
        quantized_parameters=sum(tensor.numel() for tensor in integers),
        notes=notes,
    )
