"""Observers: from the activations of calibration examples to the range of a static quantizer."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Calibration
from qb_cluster.errors import DataError, NonFiniteError
from qb_cluster.quantization import clips
from qb_cluster.quantization.histogram import Histogram

DECAY: Final = 0.95
"""What a moving average keeps with each example, as in ai-edge-quantizer (torch keeps .99 with
each batch)."""

Rule = Callable[[Histogram], tuple[float, float]]


class Observer(Protocol):
    """What sees one tensor of every calibration example. Its memory does not grow with them."""

    def update(self, values: NDArray[Any]) -> None:
        """Look at a batch.

        Args:
            values: numbers of any shape, examples along axis 0; a batch may be empty.

        Raises:
            NonFiniteError: a value is NaN or infinite (in float32).
        """

    def range(self) -> tuple[float, float]:
        """Give the range to quantize over: ``(low, high)``, inside [min, max] of all values.

        It need not hold zero; ``affine_qparams`` and ``symmetric_qparams`` see to that.

        Raises:
            DataError: no value was seen.
        """


def make_observer(calibration: Calibration, bits: int, *, symmetric: bool) -> Observer:
    """Make the observer that a calibration names.

    ================== ==================================================================
    ``minmax``         true minimum and maximum
    ``moving_average`` of each example's minimum and maximum, new = .95·old + .05·example
    ``percentile``     see ``clips.percentile``
    ``mse``            see ``clips.mse``
    ``entropy``        see ``clips.entropy``
    ================== ==================================================================

    Args:
        calibration: names the observer.
        bits: of the activations; ``mse`` and ``entropy`` weigh rounding against clipping by it.
        symmetric: whether the quantizer will be ``symmetric_qparams`` of the range.

    Raises:
        ValueError: the percentile is not within 50–100.
    """
    match calibration.observer:
        case "minmax":
            return MinMax()
        case "moving_average":
            return MovingAverage()
        case "percentile":
            percent = calibration.percentile
            if not 50 <= percent <= 100:
                raise ValueError(f"percentile is 50 to 100, not {percent}")
            return Clipped(lambda seen: clips.percentile(seen, percent, symmetric=symmetric))
        case "mse":
            return Clipped(lambda seen: clips.mse(seen, bits, symmetric=symmetric))
        case "entropy":
            return Clipped(lambda seen: clips.entropy(seen, bits))


class MinMax:
    """The true minimum and maximum over all values."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def update(self, values: NDArray[Any]) -> None:
        """See ``Observer``."""
        checked = _checked(values)
        if checked.size:
            self._low = min(self._low, float(checked.min()))
            self._high = max(self._high, float(checked.max()))

    def range(self) -> tuple[float, float]:
        """See ``Observer``."""
        if self._low > self._high:
            raise _nothing_seen()
        return self._low, self._high


class MovingAverage:
    """Exponentially averaged minimum and maximum of each example, in the order they come."""

    def __init__(self) -> None:
        self._ends: NDArray[np.float64] | None = None

    def update(self, values: NDArray[Any]) -> None:
        """See ``Observer``."""
        checked = _checked(values)
        if not checked.size:
            return
        rows = checked.reshape(len(checked) if checked.ndim else 1, -1)
        for ends in np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1).astype(np.float64):
            self._ends = ends if self._ends is None else DECAY * self._ends + (1 - DECAY) * ends

    def range(self) -> tuple[float, float]:
        """See ``Observer``."""
        if self._ends is None:
            raise _nothing_seen()
        return float(self._ends[0]), float(self._ends[1])


class Clipped:
    """A histogram of all values, and a rule that clips it."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._histogram = Histogram()

    def update(self, values: NDArray[Any]) -> None:
        """See ``Observer``."""
        checked = _checked(values)
        if checked.size:
            self._histogram.add(checked)

    def range(self) -> tuple[float, float]:
        """See ``Observer``."""
        if not self._histogram.total:
            raise _nothing_seen()
        return self._rule(self._histogram)


def _checked(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
        checked = np.asarray(values, dtype=np.float32)
    bad = checked.size - int(np.isfinite(checked).sum())
    if bad:
        raise NonFiniteError(
            f"calibration met {bad} activations of {checked.size} that are NaN or infinite; look "
            "for broken examples in the calibration set, or for a layer that overflows"
        )
    return checked


def _nothing_seen() -> DataError:
    return DataError(
        "calibration saw no value: the calibration set is empty, or no example reached this "
        "layer; give the dataset a calibration split with at least one example"
    )
