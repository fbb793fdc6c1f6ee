"""Artifacts that are a ``state_dict``: float, torchao's int8, and simulated models.

The code of the model comes from the spec's model callable, so that the file holds tensors and
plain values and is read with ``weights_only=True``: opening it runs nothing.
"""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qb_cluster.contracts import Artifact, ArtifactFacts, Executable
from qb_pytorch import fake_quantization, modules
from qb_pytorch.third_party import quiet

FORMAT = "pt"
TORCHAO_FORMAT = "torchao.pt"


def store(
    module: torch.nn.Module,
    parameters: int,
    artifact_format: str = FORMAT,
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Store a module's state and state what the stored bytes hold.

    Args:
        module: float, or quantized by torchao.
        parameters: how many the float model has. Quantizing unties tied weights, so that the
            module may hold more.
        artifact_format: ``TORCHAO_FORMAT`` where torchao must be imported before reading.
        notes: surprises about the arithmetic.
    """
    data = _dump(module, activations=None)
    return Artifact(data, artifact_format, _facts(module, parameters, _load(data)["state"], notes))


def store_simulated(
    module: torch.nn.Module,
    rounded: set[str],
    activations: Mapping[str, Any] | None,
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Store a module whose weights were rounded to what few bits can hold, as floats.

    Args:
        module: with rounded weights.
        rounded: names of the rounded parameters.
        activations: see ``fake_quantization.attach``; ``None`` where activations stay float.
        notes: surprises about the activations.
    """
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    facts = ArtifactFacts(
        parameters=sum(sizes.values()),
        parameter_bytes=None,
        quantized_parameters=sum(sizes[name] for name in rounded),
        notes=(*modules.float_weights_note(module, rounded), *notes),
    )
    return Artifact(_dump(module, activations), FORMAT, facts)


def restore(artifact: Artifact, module: torch.nn.Module) -> Executable:
    """Put the stored state into the model and make it run.

    Args:
        artifact: what ``store`` or ``store_simulated`` gave.
        module: a copy of the float model, to be changed.
    """
    if artifact.format == TORCHAO_FORMAT:
        with quiet():
            import torchao  # noqa: F401 makes its tensors known to the weights-only reader
    content = _load(artifact.data)
    module.load_state_dict(content["state"], assign=True)
    if content["activations"] is not None:
        fake_quantization.attach(module, content["activations"])
    return modules.executable(lambda inputs: modules.named_outputs(modules.call(module, inputs)))


def _dump(module: torch.nn.Module, activations: Mapping[str, Any] | None) -> bytes:
    file = io.BytesIO()
    torch.save({"state": dict(module.state_dict()), "activations": activations}, file)
    return file.getvalue()


def _load(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return content


def _facts(
    module: torch.nn.Module,
    parameters: int,
    state: Mapping[str, torch.Tensor],
    notes: tuple[str, ...],
) -> ArtifactFacts:
    """Count the stored parameters, tied ones once."""
    stored = {name: _parts(state[name]) for name, _ in module.named_parameters()}
    integers = {
        name
        for name, parts in stored.items()
        if any(not part.is_floating_point() for part in parts)
    }
    return ArtifactFacts(
        parameters=parameters,
        parameter_bytes=sum(part.nbytes for parts in stored.values() for part in parts),
        quantized_parameters=sum(state[name].numel() for name in integers),
        notes=(*(modules.float_weights_note(module, integers) if integers else ()), *notes),
    )


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Give the plain tensors a quantized one is made of: integers, scales, zero points."""
    if is_traceable_wrapper_subclass(tensor):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]
