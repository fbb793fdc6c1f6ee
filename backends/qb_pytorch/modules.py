"""Running a ``torch.nn.Module`` on NumPy arrays."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import Arrays, Executable, LoadModel
from qb_cluster.errors import PlugInError

LONE_INPUT = "input"
LONE_OUTPUT = "output"


def own_copy(load: LoadModel) -> torch.nn.Module:
    """Copy the loaded model, on the CPU and in evaluation mode, so that it may be changed.

    Args:
        load: gives a ``torch.nn.Module``, or the path of a ``.pt2`` file.

    Raises:
        PlugInError: it gives something else.
        CellError: the file cannot be read, see ``exported.read``.
        UnsupportedError: the file's program takes batches of one size only.
    """
    model = load()
    if model_kind(model) == "pt2":
        from qb_pytorch import exported

        return exported.read(Path(model))
    if not isinstance(model, torch.nn.Module):
        kind = type(model)
        raise PlugInError(
            f"the pytorch backend runs a torch.nn.Module or a .pt2 file, and the model is a "
            f"{kind.__module__}.{kind.__qualname__}; return a module from the model callable, or "
            "leave pytorch out of the backends"
        )
    return deepcopy(model).cpu().eval()


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Copy arrays, which may be read-only or strided, into tensors."""
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def cast(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Cast the floats among the inputs; ids and masks stay as they are."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


def call(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Pass a lone ``input`` by position, and anything else by name."""
    if list(inputs) == [LONE_INPUT]:
        return module(inputs[LONE_INPUT])
    return module(**inputs)


def named_outputs(raw: Any) -> dict[str, torch.Tensor]:
    """Name what a module returned: a tensor, a sequence or a mapping of them.

    Members that are no tensors (a mapping's empty fields, caches) are left out.

    Raises:
        PlugInError: there is no tensor in it.
    """
    if isinstance(raw, torch.Tensor):
        return {LONE_OUTPUT: raw}
    members: dict[str, Any] = {}
    if hasattr(raw, "items"):
        members = {str(name): member for name, member in raw.items()}
    elif isinstance(raw, tuple | list):
        lone = len(raw) == 1
        members = {
            LONE_OUTPUT if lone else f"{LONE_OUTPUT}_{index}": member
            for index, member in enumerate(raw)
        }
    outputs = {name: value for name, value in members.items() if isinstance(value, torch.Tensor)}
    if not outputs:
        raise PlugInError(
            f"the model returned {type(raw).__name__} without a tensor in it; return a tensor, "
            "or a tuple or mapping of tensors"
        )
    return outputs


def executable(run: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Executable:
    """Wrap a function on tensors: NumPy in, float32 NumPy out.

    Under ``no_grad`` and not ``inference_mode``, in which torchao's tensors fail.
    """

    def execute(inputs: Arrays, /) -> Mapping[str, NDArray[np.float32]]:
        with torch.no_grad():
            outputs = run(tensors(inputs))
            return {name: out.detach().to(torch.float32).numpy() for name, out in outputs.items()}

    return execute


def parameter_count(module: torch.nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_layers(module: torch.nn.Module) -> dict[str, str]:
    """Give each weight tensor (a parameter of two or more axes) and its layer's type, by name.

    Tied weights stand under their first name alone.
    """
    return {
        name: type(module.get_submodule(name.rpartition(".")[0])).__name__
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2
    }


def float_weights_note(module: torch.nn.Module, quantized: set[str]) -> tuple[str, ...]:
    """Say which weight tensors are not among the quantized ones; nothing if all are."""
    layers = weight_layers(module)
    left = [kind for name, kind in layers.items() if name not in quantized]
    if not left:
        return ()
    kinds = ", ".join(sorted(set(left)))
    return (f"{len(left)} of {len(layers)} weight tensors stay float ({kinds})",)
