"""Ranges of activations, kept between quantizations that calibrate alike.

Static cells of one model differ mostly in the bits of their weights, and what calibration sees of
the float model is the same for all of them.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar

import numpy as np

from qb_cluster.contracts import Arrays, Calibration

MOST: Final = 16
_OF_BITS: Final = ("mse", "entropy")
_OF_SYMMETRY: Final = ("percentile", "mse")

Ranges = TypeVar("Ranges")


class KeptRanges(Generic[Ranges]):
    """The ranges observed last, by all that decides them. Callers do not change what they get."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Ranges] = {}

    def observed(
        self,
        observe: Callable[[], Ranges],
        *,
        model: bytes,
        examples: Arrays,
        calibration: Calibration,
        bits: Any,
        symmetric: bool,
    ) -> Ranges:
        """Give ranges, observing them only where that has not been done lately.

        Args:
            observe: runs the float model on the examples.
            model: the float model, or a digest of it.
            examples: calibration examples.
            calibration: names the observer.
            bits: of the activations; ``mse`` and ``entropy`` alone look at it.
            symmetric: see ``make_observer``; ``percentile`` and ``mse`` alone look at it.
        """
        name = calibration.observer
        settings = (
            name,
            calibration.percentile if name == "percentile" else None,
            bits if name in _OF_BITS else None,
            symmetric if name in _OF_SYMMETRY else None,
        )
        key = _key(model, examples, repr(settings))
        ranges = self._kept.pop(key) if key in self._kept else observe()
        self._kept[key] = ranges  # now the latest used
        if len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]
        return ranges


def _key(model: bytes, examples: Arrays, settings: str) -> bytes:
    digest = blake2b(f"{len(model)} {settings}".encode(), digest_size=16)
    digest.update(model)
    for name, array in examples.items():
        digest.update(f"{name!r} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()
