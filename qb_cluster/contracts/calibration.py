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


def calibration_label(calibration: Calibration | None) -> str:
    """Give what rules and tables call a calibration.

    The observer, with its percentile where it has one, and whatever is not the default:
    ``minmax``, ``percentile[99.9]``, ``mse[samples=32,seed=1]``. ``none`` where there is none.
    """
    if calibration is None:
        return "none"
    usual = Calibration()
    details = [
        f"{name}={value}"
        for name, value, default in (
            ("samples", calibration.samples, usual.samples),
            ("seed", calibration.seed, usual.seed),
        )
        if value != default
    ]
    if calibration.observer == "percentile":
        details.insert(0, repr(calibration.percentile).removesuffix(".0"))
    return calibration.observer + (f"[{','.join(details)}]" if details else "")
