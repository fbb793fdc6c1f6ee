"""What follows a layer that runtimes fuse into it: batch normalization, and a clip such as ReLU."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from qb_pytorch import modules

Clip = tuple[float, float]

_BATCH_NORMS: Final = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_INFINITY: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Output:
    """Where the output of a layer is, once what follows has been fused into it.

    Attributes:
        module: name of the layer, or of the batch normalization that follows it.
        clip: what a ReLU or its like cuts it to; ``None`` without one.
    """

    module: str
    clip: Clip | None


def outputs(
    module: torch.nn.Module, names: Collection[str], example: Mapping[str, torch.Tensor]
) -> dict[str, Output]:
    """Run an example and find where the outputs of layers are.

    Only what alone reads a layer's output is fused into it.

    Args:
        module: a float model.
        names: of the layers.
        example: one example of each input.

    Returns:
        By the layer's name; layers that are not called, or several times, keep theirs.
    """
    watch = _Watch()
    norms = {n: m for n, m in module.named_modules() if isinstance(m, _BATCH_NORMS)}
    handles = [
        module.get_submodule(name).register_forward_hook(watch.made(name))
        for name in (*names, *norms)
    ]
    try:
        with torch.no_grad(), watch:
            modules.call(module, example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: watch.output(name, norms) for name in names}


@dataclass(slots=True)
class _Read:
    """A call that reads a tensor."""

    clip: Clip | None
    result: int


@dataclass(eq=False)
class _Watch(TorchFunctionMode):
    """Notes who reads what the watched modules put out."""

    tensors: dict[str, list[int]] = field(default_factory=dict)
    reads: dict[int, list[_Read]] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # so that no id is used again

    def __post_init__(self) -> None:
        super().__init__()

    def made(self, name: str) -> Callable[..., None]:
        """Make a hook that notes a module's output."""

        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            self.kept.append(output)
            self.tensors.setdefault(name, []).append(id(output))

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_attribute(func):
            return result
        self.kept.append(result)
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                read = _Read(_clip(func, args, kwargs), id(result))
                self.reads.setdefault(id(leaf), []).append(read)
        return result

    def output(self, name: str, norms: Collection[str]) -> Output:
        """Say where the output of a layer is."""
        own = self.tensors.get(name, [])
        if len(own) != 1:
            return Output(name, None)
        tensor, place = own[0], name
        reads = self.reads.get(tensor, [])
        if len(reads) == 1:
            norm = next((n for n in norms if self.tensors.get(n) == [reads[0].result]), None)
            if norm is not None:
                tensor, place = reads[0].result, norm
                reads = self.reads.get(tensor, [])
        is_alone = len(reads) == 1 or (reads and reads[0].result == tensor)  # or in place
        return Output(place, reads[0].clip if is_alone else None)


def _is_attribute(func: Any) -> bool:
    """Tell whether a call only asks a tensor for its shape, dtype or the like."""
    return getattr(func, "__name__", "") in {"__get__", "size", "dim", "numel", "is_floating_point"}


def _clip(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Clip | None:
    """Give what a call cuts its input to, if that is all it does."""
    name = getattr(func, "__name__", "")
    given = dict(zip(_CLIPS.get(name, ())[1:], args[1:], strict=False)) | dict(kwargs)
    if func in {functional.relu, torch.relu} or name in {"relu", "relu_"}:
        return 0.0, _INFINITY
    if name == "relu6":
        return 0.0, 6.0
    if name not in _CLIPS:
        return None
    low, high = (given.get(end) for end in _CLIPS[name][1:3])
    low = (-1.0 if name == "hardtanh" else -_INFINITY) if low is None else low
    high = (1.0 if name == "hardtanh" else _INFINITY) if high is None else high
    both = isinstance(low, int | float) and isinstance(high, int | float)
    return (float(low), float(high)) if both else None


_CLIPS: Final[Mapping[str, tuple[str, str, str]]] = {
    "hardtanh": ("input", "min_val", "max_val"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
}
"""Calls that cut their input, with the names of their first arguments."""
