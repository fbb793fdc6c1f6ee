"""Which products have weights: a factor that depends on no input of the model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_FACTORS: Final = {
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten._scaled_mm: (0, 1),  # noqa: SLF001 its only name
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.convolution: (0, 1),
    _aten._convolution: (0, 1),  # noqa: SLF001 its only name
    _aten.cudnn_convolution: (0, 1),
    _aten.convolution_overrideable: (0, 1),
    _aten._slow_conv2d_forward: (0, 1),  # noqa: SLF001 its only name
}
"""Where the factors of torch's products stand among their arguments."""


class WeightedFlops(TorchDispatchMode):
    """Counts the operations of products that have weights, while a model runs under it.

    It follows the inputs through every call of torch. What a call makes depends on them if one
    of its tensors does, and so does all that shares its memory. Parameters, buffers and what is
    computed from them alone are weights, however they get to a product: by a module, by
    ``functional.linear``, sliced, normalized or tied.

    What it cannot see: fused attention is taken for products of activations, even where its
    queries are parameters; what passes through NumPy or Python numbers is taken for weights;
    recurrent layers count only where torch runs them as the products that it counts itself.

    Attributes:
        flops: counted so far; two to each multiply-accumulate.
    """

    supports_higher_order_operators = True

    def __init__(
        self, inputs: Iterable[torch.Tensor], formulas: Mapping[Any, Callable[..., int]]
    ) -> None:
        """Follow tensors.

        Args:
            inputs: of the model.
            formulas: operations of a call by its name, as torch's ``FlopCounterMode`` has them.
        """
        super().__init__()
        self.flops = 0
        self._formulas = formulas
        # Weak references keep addresses from being used again, but not the memory.
        self._dependent: dict[int, StorageWeakRef] = {}
        for tensor in inputs:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call, count it, and follow what it makes."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "_overloadpacket", None)
        factors = [args[position] for position in _FACTORS.get(name, ())]
        if name in self._formulas and not all(map(self._depends, factors)):
            self.flops += self._formulas[name](*args, **kwargs, out_val=result)
        if any(map(self._depends, tree_leaves((args, kwargs)))):
            for tensor in tree_leaves(result):
                self._follow(tensor)
        return result

    def _follow(self, value: Any) -> None:
        storage = _storage(value)
        if storage is not None:
            reference = StorageWeakRef(storage)
            self._dependent[reference.cdata] = reference

    def _depends(self, value: Any) -> bool:
        storage = _storage(value)
        return storage is not None and storage._cdata in self._dependent  # noqa: SLF001


def _storage(value: Any) -> torch.UntypedStorage | None:
    """Give a tensor's memory; ``None`` for other values, and for tensors that have none."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse, or another library's
        return None
