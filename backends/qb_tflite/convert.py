"""Torch → float ``.tflite`` by litert-torch."""

import copy
from typing import Any

from qb_cluster.contracts import Arrays
from qb_cluster.errors import PlugInError
from qb_litert.quiet import quiet


def convert(model: Any, example: Arrays) -> bytes:
    """Convert a module, in evaluation mode, at the example's batch of 1.

    Args:
        model: the module; its weights and its mode stay as they are.
        example: named arrays of shape ``(1, …)``; integers of 64 bits are fed as 32 later.

    Raises:
        PlugInError: the model is no ``torch.nn.Module``.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise PlugInError(
            f"the tflite backend converts a torch.nn.Module, and the model is a "
            f"{type(model).__module__}.{type(model).__qualname__}; return the module itself "
            "from the model callable, or leave tflite out of the backends of this model"
        )
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    tensors = {name: torch.tensor(array) for name, array in example.items()}
    with quiet():
        import litert_torch

        if tensors.keys() == {"input"}:
            converted = litert_torch.convert(model, (tensors["input"],))
        else:
            converted = litert_torch.convert(model, sample_kwargs=tensors)
        return bytes(converted.model_content())
