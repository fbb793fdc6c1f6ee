"""Artifacts that are a ``state_dict``: float, 16-bit, torchao's, and simulated models.

The code of the model comes from the spec's model callable, so that the file holds tensors and
plain values and is read with ``weights_only=True``: opening it runs nothing.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qb_cluster.contracts import Artifact, ArtifactFacts, Executable
from qb_cluster.errors import CellError, OutOfMemoryError, UnsupportedError
from qb_pytorch import cuda, fake_quantization, layers, modules, nibbles
from qb_pytorch.spelled_out import spell_out
from qb_pytorch.third_party import quiet

if TYPE_CHECKING:
    from qb_pytorch.simulated import Rounding

FORMAT: Final = "pt"
TORCHAO_FORMAT: Final = "torchao.pt"


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds beside the state, in plain values.

    Attributes:
        inputs: how layers round their inputs, see ``fake_quantization.attach``.
        outputs: how they round their outputs.
        is_spelled_out: whether the state is that of the model as ``spelled_out`` writes it.
        dtype: of a 16-bit model, ``float16`` or ``bfloat16``.
        pairs: by parameter, integers of 4 bits that its tensor in the state lacks, see
            ``nibbles``.
        example: dtype and shape of one example of each input; baselines only.
        macs: total, and by layer; baselines only. See ``layers.Macs``.
        weighted_macs: of the products with weights; ``None`` in files from before they were
            counted.
        device: where it runs; tensors are stored as those of a CPU all the same.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    is_spelled_out: bool = False
    dtype: str | None = None
    pairs: dict[str, torch.Tensor] = field(default_factory=dict)
    example: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    macs: tuple[int, dict[str, int]] | None = None
    weighted_macs: int | None = None
    device: str = cuda.CPU


def store_float(
    module: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    macs: layers.Macs,
    device: str = cuda.CPU,
) -> Artifact:
    """Store the float model, and what is known of one example of it."""
    shapes = {name: (dtype_name(one.dtype), list(one.shape)) for name, one in example.items()}
    content = Content(
        example=shapes,
        macs=(macs.total, dict(macs.layers)),
        weighted_macs=macs.weighted,
        device=device,
    )
    return store(module, modules.parameter_count(module), set(), content)


def store(
    module: torch.nn.Module,
    parameters: int,
    quantized: set[str],
    content: Content,
    artifact_format: str = FORMAT,
    notes: tuple[str, ...] = (),
    *,
    halved: Iterable[str] = (),
) -> Artifact:
    """Store a module's state and state what the stored bytes hold.

    Args:
        module: float, or quantized by torchao; on the CPU.
        parameters: how many the float model has. Quantizing may untie tied weights, so that
            the module may hold more.
        quantized: names of the parameters in fewer bits.
        content: what else goes into the file.
        artifact_format: ``TORCHAO_FORMAT`` where torchao must be imported before reading.
        notes: surprises about the arithmetic.
        halved: names of torchao's tensors that are stored two integers to a byte.
    """
    data = _dump(module, content, halved)
    held = _load(data)
    state, pairs = held["state"], held["pairs"]
    stored = {
        name: _parts(state[name]) if name not in pairs else nibbles.parts(state[name], pairs[name])
        for name, _ in module.named_parameters()
    }
    facts = ArtifactFacts(
        parameters=parameters,
        parameter_bytes=sum(part.nbytes for parts in stored.values() for part in parts),
        quantized_parameters=sum(state[name].numel() for name in quantized),
        notes=(*(modules.float_weights_note(module, quantized) if quantized else ()), *notes),
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
    )
    return Artifact(data, artifact_format, facts)


def store_simulated(
    module: torch.nn.Module,
    rounded: set[str],
    rounding: "Rounding",
    notes: tuple[str, ...] = (),
    device: str = cuda.CPU,
) -> Artifact:
    """Store a module whose weights were rounded to what few bits can hold, as floats.

    Args:
        module: spelled out, with rounded weights.
        rounded: names of the rounded parameters.
        rounding: of activations; empty where they stay float.
        notes: surprises about the activations.
        device: where it runs.
    """
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    facts = ArtifactFacts(
        parameters=sum(sizes.values()),
        parameter_bytes=None,
        quantized_parameters=sum(sizes[name] for name in rounded),
        notes=(*modules.float_weights_note(module, rounded), *notes),
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
    )
    content = Content(rounding.inputs, rounding.outputs, is_spelled_out=True, device=device)
    return Artifact(_dump(module, content), FORMAT, facts)


def example(baseline: Artifact) -> dict[str, torch.Tensor]:
    """Give an example of zeros in the shapes that the baseline was made with."""
    return {
        name: torch.zeros(shape, dtype=getattr(torch, dtype))
        for name, (dtype, shape) in _load(baseline.data)["example"].items()
    }


def macs(baseline: Artifact) -> layers.Macs:
    """Give what was counted when the baseline was made."""
    content = _load(baseline.data)
    total, by_layer = content["macs"]
    return layers.Macs(total, by_layer, content["weighted_macs"])


def attention_spelled_out(
    module: torch.nn.Module, baseline: Artifact
) -> tuple[torch.nn.Module, layers.Macs]:
    """Write attention layers as products with names of their own, and give what is multiplied.

    Args:
        module: a copy of the float model, changed in place.
        baseline: what was counted when it was stored.
    """
    if not any(isinstance(one, torch.nn.MultiheadAttention) for one in module.modules()):
        return module, macs(baseline)
    module = spell_out(module, recurrent=False)
    return module, layers.count_macs(module, example(baseline))


def restore(
    artifact: Artifact,
    module: torch.nn.Module,
    device: str = cuda.CPU,
    *,
    dequantized: bool = False,
) -> Executable:
    """Put the stored state into the model and make it run.

    Args:
        artifact: what this module stored.
        module: a copy of the float model, on the device, to be changed.
        device: by torch's name.
        dequantized: whether quantized weights are made float first.

    Raises:
        CellError: the file is damaged or foreign, or holds another model's state.
        UnsupportedError: it was made for another device.
        OutOfMemoryError: the device's memory does not do.
    """
    if artifact.format == TORCHAO_FORMAT:
        with quiet():
            import torchao.quantization  # noqa: F401 tensors the reader then knows
    content = _load(artifact.data, device)
    if content["device"] != device:
        raise UnsupportedError(
            f"the artifact was made for torch's device {content['device']} and is opened on "
            f"{device}; quantize on a machine of the kind that runs it"
        )
    if content["is_spelled_out"]:
        module = spell_out(module, recurrent=artifact.format != TORCHAO_FORMAT)
    dtype = None if content["dtype"] is None else getattr(torch, content["dtype"])
    if dtype is not None:
        module.to(dtype)  # buffers that no state holds too
    try:
        state = nibbles.whole(content["state"], content["pairs"])
        if dequantized:
            state = {
                name: one.dequantize() if is_traceable_wrapper_subclass(one) else one
                for name, one in state.items()
            }
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CellError(
            f"the artifact does not fit the model ({str(error).strip()}); does the model callable "
            "give the same model each time?"
        ) from None
    fake_quantization.attach(module, content["inputs"], content["outputs"])

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if dtype is not None:
            inputs = modules.cast(inputs, dtype)
        return modules.named_outputs(modules.call(module, inputs))

    if device == cuda.CPU:
        return modules.executable(run)
    return cuda.DeviceExecutable(run, device, _tensor_bytes(module))


def dtype_name(dtype: torch.dtype) -> str:
    """Give ``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _dump(module: torch.nn.Module, content: Content, halved: Iterable[str] = ()) -> bytes:
    state, pairs = nibbles.halve(module.state_dict(), halved)
    file = io.BytesIO()
    torch.save({"state": state, **asdict(content), "pairs": pairs}, file)
    return file.getvalue()


def _load(data: bytes, device: str = cuda.CPU) -> dict[str, Any]:
    """Read a file without running anything in it.

    Raises:
        CellError: it is damaged, or holds other things than tensors and plain values.
        OutOfMemoryError: the device's memory does not do.
    """
    try:
        # Not moved afterwards: tied weights would be two then.
        with cuda.memory_errors():
            content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except OutOfMemoryError:
        raise
    except Exception as error:  # the reader has no error of its own for such files, but many
        story = str(error).strip().partition("\n")[0]
        raise CellError(
            f"the artifact is damaged, or no file of tensors alone ({type(error).__name__}: "
            f"{story}); nothing in it was run; delete it and run again"
        ) from None
    if not isinstance(content, dict) or not {"state", "inputs"} <= set(content):
        raise CellError("the artifact is no checkpoint of this backend; delete it and run again")
    return {**asdict(Content()), **content}


def _tensor_bytes(module: torch.nn.Module) -> int:
    """Give the bytes of a module's parameters and buffers, shared ones once."""
    storages = {}
    for tensor in (*module.parameters(), *module.buffers()):
        for part in _parts(tensor.detach()):
            storage = part.untyped_storage()
            storages[storage._cdata] = storage.nbytes()  # noqa: SLF001 its only name of its own
    return sum(storages.values())


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Give the plain tensors a quantized one is made of: integers, scales, zero points."""
    if is_traceable_wrapper_subclass(tensor):
        parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        return [part for part in parts if part is not None]
    return [tensor]
