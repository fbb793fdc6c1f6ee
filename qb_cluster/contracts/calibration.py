"""How static activation ranges are found."""

from dataclasses import dataclass
from typing import Literal

ObserverName = Literal["minmax", "moving_average", "percentile", "mse", "entropy"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which examples are looked at, and what is made of them.

    Attributes:
        samples: how many calibration examples are used at most.
        seed: which of them.
        observer: ``minmax``: the true minimum and maximum over all samples;
            ``moving_average``: exponentially averaged minimum and maximum of each example;
            ``percentile``: the central ``percentile`` percent of all values; ``mse``: the
            clip with the smallest squared error; ``entropy``: the clip with the smallest
            Kullback-Leibler divergence.
        percentile: for ``percentile`` only, 50-100.
    """

    samples: int = 128
    seed: int = 0
    observer: ObserverName = "minmax"
    percentile: float = 99.99
