"""Which layer of the user's model an operation of the ``.tflite`` came from."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qb_cluster.catalog.layer_weights import layer_names, layer_weights
from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import Bits, LoadModel, Quantization
from qb_cluster.quantization.layer_names import Names, StoredWeight, names_of
from qb_cluster.quantization.layer_patterns import bits_of, check_layer_patterns
from qb_litert.graph import (
    LAYER_KINDS,
    Operation,
    copy_weights,
    operations,
    read_model,
    written,
)


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
    operations: Sequence[Operation], model: Any, quantization: Quantization
) -> dict[str, Bits | None]:
    """Give the bits of each operation with weights, by its weights' name; ``None`` is float.

    Args:
        operations: those with weights.
        model: what the model callable returned: a torch module, whose layers are called as
            ``catalog.layer_weights`` calls them, or the path of a ``.tflite``, whose layers are
            called by the tensor that they put out.
        quantization: its scheme has layers.

    Raises:
        PlugInError: a pattern matches no layer.
        UnsupportedError: the patterns treat layers differently that have one weight in the
            ``.tflite``, or that it does not tell apart.
    """
    names = names_by_weights(operations, model)
    known = sorted({name for layers in names.values() for name in layers})
    if model_kind(model) == "torch":
        # A layer that was folded into a constant is none of the file's any more, and no mistake.
        known += layer_names(model)
    lost = [operation.kind for operation in operations if not names[operation.weights]]
    check_layer_patterns(quantization.scheme, known, lost)
    return {weights: bits_of(layers, quantization) for weights, layers in names.items()}


def torch_names(weighted: Sequence[Operation], module: Any) -> list[Names]:
    """Name the layers of a torch module that each operation with weights multiplies by."""
    suggested = _torch_naming(module)
    return names_of(
        layer_weights(module),
        [
            StoredWeight(
                operation.weights,
                np.zeros(0, np.float32) if operation.values is None else operation.values,
                operation.channel_axis,
                suggested(operation),
            )
            for operation in weighted
        ],
    )


def names_by_weights(weighted: Sequence[Operation], model: Any) -> dict[str, Names]:
    """Give the names of layers by the name of their weights; none where they are lost.

    Args:
        weighted: operations with weights.
        model: see ``layer_bits``. Layers of a ``.tflite`` have the name of the tensor they put out.
    """
    if model_kind(model) == "torch":
        found = torch_names(weighted, model)
    else:
        found = [operation.outputs[:1] for operation in weighted]
    names: dict[str, Names] = {}
    for operation, layers in zip(weighted, found, strict=True):
        names[operation.weights] = (*names.get(operation.weights, ()), *layers)
    return names


def unshared(data: bytes, module: Any) -> bytes:
    """Give layers with equal weights a weight each; litert-torch stores equal constants once.

    Args:
        data: the float file.
        module: the torch module that it was made from.
    """
    model = read_model(data)
    weighted = [operation for operation in operations(model) if operation.weights]
    if len({operation.weights for operation in weighted}) == len(weighted):
        return data
    first: dict[str, Names] = {}
    changed = False
    for operation, layers in zip(weighted, torch_names(weighted, module), strict=True):
        if layers and first.setdefault(operation.weights, layers) != layers:
            copy_weights(model, operation, f"{operation.weights}_of_{layers[0]}")
            changed = True
    return written(model) if changed else data


def _torch_naming(module: Any) -> Callable[[Operation], Names]:
    """Name a layer by the torch module that its tensors say it came from.

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
