"""Fast kernels, held against reference arithmetic on the very artifact that they run."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.evaluation.examples import noise_power, signal_power

DEPARTS_DB: Final = 3.0
"""An example departs where fast and reference outputs are further apart than twice what the
reference itself is from float."""
MOST_DEPARTING: Final = 0.1
FAR_DB: Final = 20.0
"""One example as far off as this is enough."""
BETTER_DB: Final = 6.0
"""So much less noise than the artifact has is not the artifact's."""
_LEAST_OF_MEAN: Final = 0.1
"""An example that happens to lose nothing may depart as one that loses a tenth of the mean."""
_ROUNDING: Final = 1e-10
"""Of the signal: float32 sums in another order."""


@dataclass(frozen=True, slots=True)
class Departure:
    """How far fast kernels are from reference arithmetic, in terms of the artifact's own noise.

    Attributes:
        departing: examples whose outputs depart.
        examples: all that were looked at.
        worst_db: the largest noise of fast against reference, over that of reference against
            float, of an example; -infinity where all are equal.
        gain_db: the median of noise of reference against float, over that of fast against float:
            what the fast kernels are better by.
        slack_db: by how much right kernels of this runtime may be further off than rounding.
    """

    departing: int
    examples: int
    worst_db: float
    gain_db: float
    slack_db: float

    @property
    def fault(self) -> str:
        """Say what is wrong; nothing where nothing is."""
        if self.worst_db > FAR_DB + self.slack_db:
            return f"one example is {self.worst_db:.0f} dB further off than the artifact from float"
        if self.departing > MOST_DEPARTING * self.examples:
            return f"{self.departing} of {self.examples} examples depart"
        if self.gain_db > BETTER_DB + self.slack_db:
            return f"they have {self.gain_db:.0f} dB less noise than the artifact that they run"
        return ""


def departure(
    floats: NDArray[Any], reference: NDArray[Any], fast: NDArray[Any], slack_db: float = 0.0
) -> Departure:
    """Compare fast kernels with reference arithmetic on the same artifact, example by example.

    Args:
        floats: of the float model, n examples along axis 0.
        reference: of the artifact by reference arithmetic, the same shape.
        fast: of the kernels that are measured, the same shape.
        slack_db: see ``Departure``.

    Raises:
        ValueError: the shapes differ.
    """
    own, rounding = noise_power(floats, reference), _ROUNDING * signal_power(floats).mean()
    allowed = np.maximum(np.maximum(own, _LEAST_OF_MEAN * own.mean()), rounding)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart_db = 10 * np.log10(noise_power(reference, fast) / allowed)
        gains = 10 * np.log10(own / noise_power(floats, fast))
    apart_db = np.where(np.isnan(apart_db), -np.inf, apart_db)  # nothing of nothing
    gains = np.where(own > rounding, gains, 0.0)
    return Departure(
        departing=int(np.sum(apart_db > DEPARTS_DB + slack_db)),
        examples=len(floats),
        worst_db=float(apart_db.max()),
        gain_db=float(np.median(gains)),
        slack_db=slack_db,
    )
