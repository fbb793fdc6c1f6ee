"""What layers a file's weights belong to: found by their values, whatever a conversion did to them.

A converter transposes, reshapes, stacks and reorders weights, and calls them as it likes. What it
keeps is the values. So weights are known by a sum over their values that does not depend on order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Names = tuple[str, ...]
"""Layers that one weight of a file belongs to: several where it holds several layers' weights, or
layers share it."""

_CHUNK: Final = 2**20
_SCALED: Final = 1e-3
"""How far weights may be off, as a share of the channel's largest, after a factor was folded in."""


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A weight of the float model.

    Attributes:
        names: of the layers that it belongs to.
        values: float32, as the model has it.
        axis: of ``values`` that runs over output channels.
        fingerprint: of ``values``.
    """

    names: Names
    values: NDArray[np.float32]
    axis: int
    fingerprint: int


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight in a file, as one operation reads it.

    Attributes:
        tensor: its name in the file.
        values: float32, in the layout of the file.
        axis: of ``values`` that runs over output channels.
        hints: names of layers, or of modules around them, that the file suggests, the likeliest
            first.
    """

    tensor: str
    values: NDArray[np.float32]
    axis: int
    hints: Names


def fingerprint(values: NDArray[Any]) -> int:
    """Give a number that is the same for the same values in any order and shape.

    That of values put together is the sum of theirs, modulo 2^64.
    """
    flat = np.ascontiguousarray(values, np.float32).ravel()
    total = 0
    for start in range(0, len(flat), _CHUNK):
        # Adding zero makes -0 of 0.
        mixed = (flat[start : start + _CHUNK] + np.float32(0)).view(np.uint32).astype(np.uint64)
        for shift, factor in ((32, 0x9E3779B97F4A7C15), (29, 0xBF58476D1CE4E5B9)):
            mixed = (mixed + np.uint64(factor >> 1)) * np.uint64(factor)
            mixed ^= mixed >> np.uint64(shift)
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**64


def names_of(known: Sequence[LayerWeight], stored: Sequence[StoredWeight]) -> list[Names]:
    """Give the layers that each weight of a file belongs to.

    Weights with the same values come first. Of layers with equal weights the file's hints tell,
    else the order: the first in the file is the first in the model. A weight that is nowhere in
    the model, such as one that batch normalization was folded into, is the one of its hints that
    is the same up to a factor for each channel, else the hints themselves.

    Args:
        known: the weights of the model, in its order.
        stored: those of the file, in the order they are read; one that is read twice comes twice.

    Returns:
        Names for each of ``stored``; nothing where the file does not even have a hint.
    """
    by_content: dict[tuple[int, int], list[Names]] = {}
    for weight in known:
        by_content.setdefault((weight.values.size, weight.fingerprint), []).append(weight.names)
    values = {each.tensor: each.values for each in stored}
    contents = {tensor: (own.size, fingerprint(own)) for tensor, own in values.items()}
    prints = [contents[each.tensor] for each in stored]
    found: list[Names | None] = [None] * len(stored)
    for content, candidates in by_content.items():
        places = [place for place, own in enumerate(prints) if own == content]
        for place, names in _told_apart(places, candidates, stored).items():
            found[place] = names
    taken = {name for names in found for name in names or ()}
    by_name = {weight.names: weight for weight in known}
    return [
        names if names is not None else _changed(each, by_name, taken)
        for names, each in zip(found, stored, strict=True)
    ]


def _told_apart(
    places: Sequence[int], candidates: Sequence[Names], stored: Sequence[StoredWeight]
) -> dict[int, Names]:
    """Give the layers of weights with equal values."""
    if len(candidates) == 1:
        return dict.fromkeys(places, candidates[0])
    found: dict[int, Names] = {}
    for place in places:
        for hint in stored[place].hints:
            fitting = [names for names in candidates if hint in names] or [
                names for names in candidates if names[0].startswith(f"{hint}.")
            ]
            if len(fitting) == 1:
                found[place] = fitting[0]
                break
    left = [names for names in candidates if names not in found.values()] or list(candidates)
    nameless = [place for place in places if place not in found]
    for number, place in enumerate(nameless):
        found[place] = left[min(number, len(left) - 1)]
    return found


def _changed(
    stored: StoredWeight, by_name: Mapping[Names, LayerWeight], taken: Iterable[str]
) -> Names:
    """Give the layers of a weight whose values are not the model's any more."""
    free = [hint for hint in stored.hints if hint not in taken]
    scaled = [
        names
        for names, weight in by_name.items()
        if not {*names}.isdisjoint(free) and _same_up_to_factors(weight, stored)
    ]
    if len(scaled) == 1:
        return scaled[0]
    same_size = [
        hint
        for hint in free
        if any(
            hint in names and weight.values.size == stored.values.size
            for names, weight in by_name.items()
        )
    ]
    return tuple(same_size) or tuple(free) or stored.hints


def _same_up_to_factors(weight: LayerWeight, stored: StoredWeight) -> bool:
    mine, own = _rows(weight.values, weight.axis), _rows(stored.values, stored.axis)
    return mine.shape == own.shape and bool(np.abs(mine - own).max(initial=0) < _SCALED)


def _rows(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Give the magnitudes of each channel as shares of the largest, in ascending order."""
    moved = np.abs(np.moveaxis(values, axis, 0))
    rows = moved.reshape(len(moved), -1)
    largest = rows.max(1, keepdims=True, initial=0)
    shares: NDArray[np.float32] = np.sort(rows / np.where(largest > 0, largest, 1), 1)
    return shares
