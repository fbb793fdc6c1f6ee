"""Float ``.tflite`` files: from torch by litert-torch, or as they are."""

import copy
from pathlib import Path
from typing import Any

from qb_cluster.catalog.model import model_kind
from qb_cluster.causes import cause
from qb_cluster.contracts import Arrays
from qb_cluster.errors import NonFiniteError, PlugInError, UnsupportedError
from qb_litert.graph import read_model, stored_type
from qb_litert.quiet import quiet
from qb_litert.runtime import TFLiteExecutable
from qb_tflite.layers import unshared


def convert(model: Any, example: Arrays) -> bytes:
    """Give a model's float ``.tflite``.

    Args:
        model: a ``torch.nn.Module``, or the path of a ``.tflite``.
        example: named arrays of shape ``(1, …)``; integers of 64 bits are fed as 32 later.

    Raises:
        PlugInError: the model is neither, fails on the example, or the file cannot be read or run.
        UnsupportedError: litert-torch cannot convert the module, or the file is quantized already.
        NonFiniteError: the module's weights are NaN or infinite.
    """
    match model_kind(model):
        case "torch":
            return _convert_module(model, example)
        case "tflite":
            return _read_file(Path(model), example)
    raise PlugInError(
        "the tflite backend takes the path of a .tflite or a torch.nn.Module, and the model is a "
        f"{type(model).__module__}.{type(model).__qualname__}; return the module itself from the "
        "model callable, or leave tflite out of the backends of this model"
    )


def _convert_module(model: Any, example: Arrays) -> bytes:
    """Convert a module, in evaluation mode, at the example's batch of 1.

    The module's weights and its mode stay as they are.

    Raises:
        PlugInError: the module fails on the example.
        UnsupportedError: litert-torch cannot convert it.
        NonFiniteError: weights are NaN or infinite. litert-torch would write the largest float32
            for infinity, and the file would be another model.
    """
    import torch

    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"weights '{name}' are NaN or infinite in places; load or train the model anew"
            )

    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    tensors = {name: torch.tensor(array) for name, array in example.items()}
    by_position = tensors.keys() == {"input"}
    args = tuple(tensors.values()) if by_position else ()
    kwargs = {} if by_position else tensors
    try:
        with quiet():
            import litert_torch

            converted = litert_torch.convert(model, args, sample_kwargs=kwargs or None)
            return unshared(bytes(converted.model_content()), model)
    except Exception as error:  # the converter raises what it likes
        _check_model(model, args, kwargs)
        raise UnsupportedError(
            f"litert-torch cannot convert this model ({cause(error)}); make its forward traceable "
            "by torch.export, or leave tflite out of the backends of this model"
        ) from error


def _check_model(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell a model that fails by itself from one that cannot be converted.

    Raises:
        PlugInError: it fails on the example.
    """
    import torch

    try:
        with quiet(), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # whatever a model of the user's raises
        raise PlugInError(
            f"the model fails on an example of the dataset ({cause(error)}); see that its forward "
            "takes inputs of these shapes, the batch first"
        ) from error


def _read_file(path: Path, example: Arrays) -> bytes:
    """Read a file, run it once, and make sure that it is float."""
    try:
        data = path.read_bytes()
        with quiet():
            TFLiteExecutable(data, threads=1)(example)
    except (OSError, ValueError, RuntimeError) as error:
        raise PlugInError(
            f"{path} cannot be run as a float model: {error}; it takes a whole .tflite of batch "
            "1 whose inputs are the dataset's, by name or in order"
        ) from error
    kinds = {
        stored_type(tensor) for graph in read_model(data).subgraphs for tensor in graph.tensors
    }
    if kinds & {"integer", "half"}:
        raise UnsupportedError(
            f"{path} is quantized already, and cannot be the float model that others are compared "
            "with; give the float32 .tflite it was made from"
        )
    return data
