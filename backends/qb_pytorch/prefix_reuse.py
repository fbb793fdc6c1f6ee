"""Running a module again without what comes before one of its layers.

A recording keeps the output of every submodule's call, in the order in which calls began. When
the module runs again, a submodule whose call ended before the layer's began is not computed: its
recorded output is handed out. What a forward does between its submodules is computed as ever, so
that any ``torch.nn.Module`` will do, traceable or not.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from qb_pytorch import modules


class ReplayError(Exception):
    """The module called its submodules in another order than when it was recorded."""


@dataclass(slots=True)
class Call:
    """One call of a submodule.

    Attributes:
        module: who was called.
        end: index of the first call that began after this one had ended.
        output: what it returned, tensors copied, so that in-place operations leave them alone.
    """

    module: torch.nn.Module
    end: int = 0
    output: Any = None


@dataclass(slots=True)
class Recording:
    """The calls of one run, in the order in which they began."""

    calls: list[Call] = field(default_factory=list)
    output: Any = None

    def first_use(self, users: set[torch.nn.Module]) -> int:
        """Give the index of the first call of one of the modules; 0 if none was called."""
        return next((i for i, call in enumerate(self.calls) if call.module in users), 0)


def record(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Recording:
    """Run a module and keep what its submodules return.

    Args:
        module: in evaluation mode; left as it was.
        inputs: a batch, by name.
    """
    recording = Recording()

    def keep(owner: torch.nn.Module, compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(owner)
            recording.calls.append(call)
            output = compute(*args, **kwargs)
            call.end, call.output = len(recording.calls), _copy(output)
            return output

        return forward

    with torch.no_grad(), _forwards(module, keep):
        recording.output = modules.call(module, inputs)
    return recording


def replay(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], recording: Recording, start: int
) -> Any:
    """Run a module again, but for the calls that ended before call ``start`` began.

    Args:
        module: the recorded one, changed in call ``start`` and later ones at most.
        inputs: the recorded batch.
        recording: of a run on the same inputs.
        start: index of a call; 0 computes everything.

    Raises:
        ReplayError: the submodules are called in another order.
    """
    position = 0

    def skip(owner: torch.nn.Module, compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal position
            if position >= start:
                return compute(*args, **kwargs)
            call = recording.calls[position]
            if call.module is not owner:
                raise ReplayError
            if call.end <= start:
                position = call.end
                return _copy(call.output)
            position += 1
            return compute(*args, **kwargs)

        return forward

    with torch.no_grad(), _forwards(module, skip):
        return modules.call(module, inputs)


Wrap = Callable[[torch.nn.Module, Callable[..., Any]], Callable[..., Any]]


@contextlib.contextmanager
def _forwards(module: torch.nn.Module, wrap: Wrap) -> Iterator[None]:
    """Put a wrapper around every submodule's forward for a while."""
    owners = [owner for owner in module.modules() if owner is not module]
    own = {owner: owner.__dict__.get("forward") for owner in owners}
    try:
        for owner in owners:
            owner.forward = wrap(owner, owner.forward)
        yield
    finally:
        for owner, forward in own.items():
            if forward is None:
                owner.__dict__.pop("forward", None)
            else:
                owner.forward = forward


def _copy(output: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, output)
