"""The weights of a torch module by the names of its layers; torch itself is not imported."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.quantization.layer_names import LayerWeight, Names, fingerprint

_PARTS: Final = ("q", "k", "v")
_REVERSE: Final = "_reverse"


def layer_weights(module: Any) -> list[LayerWeight]:
    """Give the weights of a module, in its order, under the names that a scheme's rules match.

    A layer is called as ``named_modules`` calls it. The projections of
    ``torch.nn.MultiheadAttention`` are ``in_proj.q``, ``in_proj.k``, ``in_proj.v`` and ``out_proj``
    below its name, the products of a recurrent layer its weights: ``weight_ih_l0``, … Parameters
    that no layer is known to own have their own names. Layers that share a weight are named
    together.

    What a converter may store as one weight comes again as one, after its parts: all three
    projections, keys with values, and both directions of a recurrent layer.

    Args:
        module: a ``torch.nn.Module`` on the CPU.
    """
    shared: dict[int, tuple[list[str], Any]] = {}
    parts: list[tuple[Names, Any]] = []
    for names, parameter in _owned(module):
        if len(names) > 1:
            parts.append((names, parameter))
        else:
            shared.setdefault(id(parameter), ([], parameter))[0].extend(names)
    found = [
        _weight(tuple(names), _array(parameter), _axis(module, names[0]))
        for names, parameter in shared.values()
    ]
    for names, parameter in parts:
        found += _split(names, parameter)
    return [*found, *_directions(found)]


def layer_names(module: Any) -> list[str]:
    """Give the names of a module's layers, and of nothing else that has weights."""
    return [name for names, _ in _owned(module, others=False) for name in names]


def same_bits(module: Any) -> dict[str, Names]:
    """Give for each layer those that must have the same bits as it, itself among them.

    They share a weight, or a converter may store their weights as one: see ``layer_weights``.
    """
    sharing: dict[int, Names] = {}
    for names, weight in _owned(module, others=False):
        sharing[id(weight)] = (*sharing.get(id(weight), ()), *names)
    found = {name: names for names in sharing.values() for name in names}
    for name in list(found):
        forward = name.removesuffix(_REVERSE)
        if forward != name and forward in found:
            found[forward] = found[name] = (forward, name)
    return found


def weight_names(module: Any, parameter: str) -> Names:
    """Give the layers whose weight a parameter is, by its name; the place it is in where unknown.

    Raises:
        AttributeError: the module has no such parameter.
    """
    place, _, own = parameter.rpartition(".")
    owner = module.get_submodule(place)
    names = [names for names, weight in _layers_of(owner, place) if weight is getattr(owner, own)]
    return names[0] if names else (place,)


def _owned(module: Any, *, others: bool = True) -> Iterator[tuple[Names, Any]]:
    """Give layers with their parameters; several names are parts along the parameter's axis 0."""
    seen = set()
    for name, layer in module.named_modules():
        for names, weight in _layers_of(layer, name):
            seen.add(id(weight))
            yield names, weight
    if others:
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen and parameter.ndim > 1:
                yield (name,), parameter


def _layers_of(layer: Any, name: str) -> Iterator[tuple[Names, Any]]:
    """Give the layers that a module is by itself, whatever is below it."""
    below = f"{name}." if name else ""
    kinds = {kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("torch.")}
    own = dict(layer.named_parameters(recurse=False))
    if "MultiheadAttention" in kinds:
        if own.get("in_proj_weight") is not None:
            yield tuple(f"{below}in_proj.{part}" for part in _PARTS), own["in_proj_weight"]
        for part in _PARTS:
            if own.get(f"{part}_proj_weight") is not None:
                yield (f"{below}in_proj.{part}",), own[f"{part}_proj_weight"]
    elif "RNNBase" in kinds:
        for parameter, weight in own.items():
            if parameter.startswith("weight_"):
                yield (f"{below}{parameter}",), weight
    elif "weight" in own and own["weight"].ndim > 1:
        yield (name,), own["weight"]


def _split(names: Names, parameter: Any) -> Iterator[LayerWeight]:
    values = _array(parameter)
    each = np.split(values, len(names))
    for name, part in zip(names, each, strict=True):
        yield _weight((name,), part, 0)
    yield _weight(names[1:], np.concatenate(each[1:]), 0)
    yield _weight(names, values, 0)


def _directions(found: list[LayerWeight]) -> Iterator[LayerWeight]:
    """Put the two directions of recurrent layers together."""

    def forward(weight: LayerWeight) -> str:
        return weight.names[0].removesuffix(_REVERSE)

    for name, pair in groupby(sorted(found, key=forward), forward):
        both = list(pair)
        if len(both) == 2 and both[1].names[0] == f"{name}{_REVERSE}":
            stacked = np.stack([weight.values for weight in both])
            yield _weight((both[0].names[0], both[1].names[0]), stacked, 1)


def _weight(names: Names, values: NDArray[np.float32], axis: int) -> LayerWeight:
    return LayerWeight(names, values, axis, fingerprint(values))


def _axis(module: Any, name: str) -> int:
    """Give the axis of output channels: 1 for a transposed convolution, 0 for all else."""
    try:
        kinds = {kind.__name__ for kind in type(module.get_submodule(name)).__mro__}
    except AttributeError:  # a parameter that no layer owns
        return 0
    return 1 if "_ConvTransposeNd" in kinds else 0


def _array(parameter: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = parameter.detach().float().cpu().numpy()
    return values
