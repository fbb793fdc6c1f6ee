"""Which layer of the user's model an operation of the ``.tflite`` came from."""

import re
from collections.abc import Callable
from typing import Any

from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import Bits, LoadModel, Quantization
from qb_cluster.errors import UnsupportedError
from qb_cluster.quantization.layer_patterns import check_layer_patterns
from qb_litert.graph import LAYER_KINDS, Operation

Names = tuple[str, ...]
"""A layer's possible names; more than one where the file no longer tells them apart."""


def bits_of_weights(
    weighted: list[Operation], model: LoadModel, quantization: Quantization
) -> dict[str, Bits | None]:
    """Give the bits of weights by their name; ``None`` for those that the scheme leaves float.

    Args:
        weighted: the operations with weights.
        model: loaded only to know the names of its layers, when the scheme asks for some.
        quantization: scheme and bits.

    Raises:
        PlugInError, UnsupportedError: see ``layer_bits``.
    """
    bits: dict[str, Bits | None] = dict.fromkeys((op.weights for op in weighted), quantization.bits)
    if quantization.scheme.layers:
        bits = layer_bits(weighted, model(), quantization)
    for operation in weighted:
        if LAYER_KINDS[operation.kind] not in quantization.scheme.weights:
            bits[operation.weights] = None
    return bits


def layer_bits(
    operations: list[Operation], model: Any, quantization: Quantization
) -> dict[str, Bits | None]:
    """Give the bits of each operation with weights, by its weights' name; ``None`` is float.

    Args:
        operations: those with weights.
        model: what the model callable returned: a torch module, whose layers are called as
            ``named_modules`` calls them, or the path of a ``.tflite``, whose layers are called
            by the tensor that they put out.
        quantization: its scheme has layers.

    Raises:
        PlugInError: a pattern matches no layer.
        UnsupportedError: two layers that the patterns treat differently have one name in the
            ``.tflite``.
    """
    names = layer_names(operations, model)
    known = sorted({name for candidates in names.values() for name in candidates})
    lost = [operation.kind for operation in operations if not names[operation.weights]]
    check_layer_patterns(quantization.scheme, known, lost)
    bits = {}
    for weights, candidates in names.items():
        choices = {quantization.layer_bits(name) for name in candidates} or {quantization.bits}
        if len(choices) > 1:
            raise UnsupportedError(
                f"the .tflite has one name for the layers {', '.join(candidates)}, which the "
                "scheme's layers give different bits; give them the same ones"
            )
        bits[weights] = choices.pop()
    return bits


def layer_names(operations: list[Operation], model: Any) -> dict[str, Names]:
    """Give the possible names of each operation's layer by its weights' name; none if lost.

    Args:
        operations: those with weights.
        model: see ``layer_bits``.
    """
    naming = _torch_naming(model) if model_kind(model) == "torch" else _tensor_naming
    return {operation.weights: naming(operation) for operation in operations}


def _tensor_naming(operation: Operation) -> Names:
    """Name a layer by the tensor it puts out."""
    return operation.outputs[:1]


def _torch_naming(module: Any) -> Callable[[Operation], Names]:
    """Name a layer by the torch module it came from.

    litert-torch writes the modules that were entered into the names of tensors, outermost first:
    ``pkg.Net/torch.nn.modules.container.Sequential_stem/torch.nn.modules.conv.Conv2d_0;``, each
    with its class and the last part of its name. A container that is only iterated over
    (``ModuleList``) is never entered, and missing.
    """
    parts: dict[str, tuple[str, ...]] = {}
    weighted: set[str] = set()
    for name, entered in module.named_modules():
        above, _, own = name.rpartition(".")
        label = f"{type(entered).__module__}.{type(entered).__qualname__}"
        parts[name] = (*parts[above], f"{label}_{own}") if name else (label,)
        if any(parameter.ndim > 1 for parameter in entered.parameters(recurse=False)):
            weighted.add(name)

    def candidates(path: str) -> Names:
        wanted = tuple(path.split("/"))
        exact = tuple(name for name, chain in parts.items() if chain == wanted)
        return exact or tuple(
            name
            for name, chain in parts.items()
            if chain[-1] == wanted[-1] and _is_within(wanted, chain)
        )

    def naming(operation: Operation) -> Names:
        # The tensors of a fused operation bear the names of all its modules, as does a weight
        # that batch normalization was folded into; the model's last output bears none.
        tensors = (operation.weights, *operation.outputs)
        paths = [path for tensor in tensors for path in re.split(r";\d*", tensor) if path]
        found = [names for path in paths if (names := candidates(path))]
        return max(
            found,
            key=lambda names: (names[0] in weighted, len(parts[names[0]])),
            default=(),
        )

    return naming


def _is_within(wanted: tuple[str, ...], chain: tuple[str, ...]) -> bool:
    """Tell whether the parts wanted come in the chain, in that order, from its start."""
    rest = iter(chain)
    return wanted[0] == chain[0] and all(part in rest for part in wanted)
