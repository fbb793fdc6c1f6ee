"""A histogram of float values whose bins are fixed beforehand, so that it never grows."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Bins = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Counts, lower and upper ends of the bins that are not empty, in rising order."""

_FRACTION_BITS: Final = 7
_DROPPED: Final = 23 - _FRACTION_BITS
_MAGNITUDES: Final = 2 ** (8 + _FRACTION_BITS)
_LARGEST: Final = float(np.finfo(np.float32).max)


def _magnitude_edges() -> NDArray[np.float64]:
    """Give the 2^15 + 1 ends of the bins of |x|; those past the largest float32 are that."""
    prefixes = np.arange(_MAGNITUDES + 1, dtype=np.uint32) << _DROPPED
    largest = np.array(_LARGEST, np.float32).view(np.uint32)
    edges: NDArray[np.float64] = np.minimum(prefixes, largest).view(np.float32).astype(np.float64)
    return edges


_EDGES: Final = _magnitude_edges()


class Histogram:
    """Counts of float32 values by sign, exponent and the first 7 bits of the fraction.

    A bin is 1/256 to 1/128 of its values wide, from denormals to the largest float32, so an outlier
    costs the others no resolution, and counts need no re-binning: 2^16 of them, 512 KiB,
    whatever comes in whatever order. Values are taken to lie evenly within a bin.

    Attributes:
        low: the exact minimum.
        high: the exact maximum.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._counts = np.zeros(2 * _MAGNITUDES, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values; float32, any shape, not empty."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        keys = np.ascontiguousarray(values).ravel().view(np.uint32) >> _DROPPED
        self._counts += np.bincount(keys, minlength=len(self._counts))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self._counts.sum())

    def bins(self) -> Bins:
        """Give the bins that hold values."""
        positive, negative = self._counts[:_MAGNITUDES], self._counts[_MAGNITUDES:]
        counts = np.concatenate([negative[::-1], positive])
        lower = np.concatenate([-_EDGES[:0:-1], _EDGES[:-1]])
        upper = np.concatenate([-_EDGES[-2::-1], _EDGES[1:]])
        return self._occupied(counts, lower, upper, self.low, self.high)

    def magnitude_bins(
        self,
    ) -> Bins:
        """Give the bins of |x|."""
        counts = self._counts[:_MAGNITUDES] + self._counts[_MAGNITUDES:]
        smallest = max(self.low, -self.high, 0.0)  # 0 where values of both signs were seen
        return self._occupied(counts, _EDGES[:-1], _EDGES[1:], smallest, max(self.high, -self.low))

    @staticmethod
    def _occupied(
        counts: NDArray[np.int64],
        lower: NDArray[np.float64],
        upper: NDArray[np.float64],
        low: float,
        high: float,
    ) -> Bins:
        seen = counts > 0
        return counts[seen], lower[seen].clip(low, high), upper[seen].clip(low, high)


def quantile(bins: Bins, share: float) -> float:
    """Give the value that ``share`` of all counted values stay below, 0–1."""
    counts, lower, upper = bins
    below = np.cumsum(counts)
    rank = share * float(below[-1])
    index = min(int(np.searchsorted(below, rank)), len(counts) - 1)
    into = (rank - float(below[index] - counts[index])) / float(counts[index])
    return float(lower[index] + into * (upper[index] - lower[index]))


def cumulative(
    bins: Bins,
    points: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Give how many values lie below each of the points, in fractions of a bin."""
    counts, lower, upper = bins
    below = np.cumsum(counts)
    ends = np.stack([lower, upper], axis=1).ravel()
    return np.interp(points, ends, np.stack([below - counts, below], axis=1).ravel())
