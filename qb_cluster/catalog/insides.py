"""What counts about a torch or Keras model, as plain values, without importing either.

Whoever has such a model has imported its framework, so it is in ``sys.modules``.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from qb_cluster.catalog.model import model_kind

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")
_WIDEST: Final = 8  # bytes of a number
_GENERATED: Final = ("torch.jit", "torch.fx")


def is_tensor(value: Any) -> bool:
    """Tell whether a value is a torch tensor."""
    return any(
        base.__name__ in {"Tensor", "TensorBase"} and base.__module__.partition(".")[0] == "torch"
        for base in type(value).__mro__
    )


def of_tensor(tensor: Any) -> Iterator[Any]:
    """Give the kind, the shape and the bytes of a torch tensor, a plain one's without a copy."""
    torch: Any = sys.modules["torch"]
    yield str(tensor.dtype)
    yield tuple(map(int, tensor.shape))
    if hasattr(tensor, "__tensor_flatten__"):  # a tensor made of tensors
        names, context = tensor.__tensor_flatten__()
        yield type(tensor)
        yield [getattr(tensor, name) for name in names]
        yield context
    elif not tensor.is_meta:
        plain = tensor.detach()
        if plain.is_quantized:
            plain = plain.dequantize()
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield plain.view(torch.uint8).numpy()


def size_bytes(model: Any) -> int | None:
    """Give what a model's tensors take in memory, at most; ``None``: unknown.

    The path of a file takes nothing: whoever needs what is in it reads it.
    """
    if isinstance(model, str | Path):
        return 0
    kind = model_kind(model)
    if kind == "torch":
        tensors = [*model.parameters(), *model.buffers()]
        return int(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    if kind == "keras":
        return int(_WIDEST * sum(math.prod(weight.shape) for weight in model.weights))
    return None


def parts(model: Any) -> list[Any]:
    """Give the modules of a torch model; of a Keras model none, since its config is plain."""
    return list(model.modules()) if model_kind(model) == "torch" else []


def of_model(model: Any) -> Iterator[Any]:
    """Give everything that a torch or Keras model's outputs may depend on."""
    return _torch(model) if model_kind(model) == "torch" else _keras(model)


def _torch(model: Any) -> Iterator[Any]:
    """Give its structure, its tensors, and whatever else its forward may look at."""
    yield _ADDRESS.sub("", repr(model))
    state = model.state_dict()
    yield list(state.items())
    yield [(name, buffer) for name, buffer in model.named_buffers() if name not in state]
    internal = vars(sys.modules["torch"].nn.Module()).keys()
    for name, module in model.named_modules():
        attributes = vars(module)
        yield name
        yield type(module)
        if any(base.__module__.startswith(_GENERATED) for base in type(module).__mro__):
            yield _code(module)  # it was traced or scripted: its class says nothing
            continue
        yield module.training
        yield {key: attributes[key] for key in attributes.keys() - internal}
        yield [function for hooks in _HOOKS for function in attributes[hooks].values()]


def _code(module: Any) -> str | None:
    try:
        return str(module.code)
    except (AttributeError, RuntimeError):  # it has no forward of its own
        return None


def _keras(model: Any) -> Iterator[Any]:
    """Give its classes, its config with automatic names counted anew, and its weights."""
    layers = list(_layers(model))
    yield [type(layer) for layer in layers]
    try:
        config = model.get_config()
    except (NotImplementedError, TypeError, ValueError):  # a subclass without one
        config = [_plain_attributes(layer) for layer in layers]
    yield _renamed(config, _fresh_names(layers))
    for weight in model.weights:
        yield weight.name.rpartition("/")[2]
        yield weight.numpy()


def _layers(model: Any) -> Iterator[Any]:
    yield model
    for layer in getattr(model, "layers", ()):
        yield from _layers(layer)


def _plain_attributes(layer: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str | np.ndarray)
    }


def _fresh_names(layers: list[Any]) -> dict[str, str]:
    """Number automatic names as they would be in a fresh process.

    Keras numbers layers by how many of their class were made before, by whatever model.
    """
    counted: dict[str, int] = {}
    names: dict[str, str] = {}
    for layer in layers:
        base = _snake(type(layer).__name__)
        if layer.name not in names and re.fullmatch(rf"{base}(_\d+)?", layer.name):
            counted[base] = counted.get(base, 0) + 1
            names[layer.name] = f"{base}#{counted[base]}"
    return names


def _snake(name: str) -> str:
    spaced = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", spaced).lower()


def _renamed(config: Any, names: Mapping[str, str]) -> Any:
    if isinstance(config, str):
        return names.get(config, config)
    if isinstance(config, Mapping):
        return {key: _renamed(value, names) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_renamed(value, names) for value in config]
    return config
