"""What a worker keeps between stages."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psutil

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import dataset_digest, model_digest
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.catalog.insides import size_bytes
from qb_cluster.contracts import Ref

MOST_BYTES: Final = 2**30


@dataclass(frozen=True, slots=True)
class Kept:
    """Something loaded.

    Attributes:
        digest: of what was loaded, taken before anybody used it.
        size_bytes: what it takes in memory; ``None`` when unknown.
    """

    value: Any
    digest: str
    size_bytes: int | None


class Keeper:
    """Keeps the last things loaded from a ref: all that fit together, else the last one alone.

    What is of unknown size counts as too large to have company.

    Args:
        load: loads one.
        most_bytes: what all of them may take.
    """

    def __init__(self, load: Callable[[Ref], Kept], most_bytes: int | None = None) -> None:
        self._load = load
        self._most = _share_of_memory() if most_bytes is None else most_bytes
        self._kept: dict[Ref, Kept] = {}

    def __contains__(self, ref: Ref) -> bool:
        """Tell whether it would have to be loaded."""
        return ref in self._kept

    def get(self, ref: Ref) -> Kept:
        """Give it, loading it if need be.

        Raises:
            CellError: it cannot be loaded.
        """
        if ref in self._kept:
            self._kept[ref] = self._kept.pop(ref)  # now the latest used
            return self._kept[ref]
        self._make_room(0)  # two large ones may not fit into memory
        kept = self._load(ref)
        self._make_room(self._size(kept))
        self._kept[ref] = kept
        return kept

    def _make_room(self, size: int) -> None:
        while self._kept and size + sum(map(self._size, self._kept.values())) > self._most:
            del self._kept[next(iter(self._kept))]

    def _size(self, kept: Kept) -> int:
        return self._most + 1 if kept.size_bytes is None else kept.size_bytes


def load_kept_model(ref: Ref) -> Kept:
    """Load a model, and digest it.

    Raises:
        PlugInError: it cannot be loaded.
    """
    model = plugins.make("model", ref)
    digest = model_digest(model, plugins.find("model", ref.target), ref.options_json)
    return Kept(model, digest, size_bytes(model))


def load_kept_dataset(ref: Ref) -> Kept:
    """Load a dataset, and digest it.

    Raises:
        PlugInError: it cannot be loaded.
        DataError: it breaks the contract.
    """
    dataset = load_dataset(ref)
    arrays = [*dataset.inputs.values(), *dataset.calibration.values()]
    arrays += [dataset.targets, dataset.ids, dataset.calibration_ids]
    return Kept(dataset, dataset_digest(dataset), sum(array.nbytes for array in arrays))


def _share_of_memory() -> int:
    """Give an eighth of the memory, divided among as many workers as there are cores."""
    return min(MOST_BYTES, psutil.virtual_memory().total // (8 * (os.cpu_count() or 1)))
