"""The observers of activations, held against the clips that theory gives."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qb_cluster.contracts import Calibration, ObserverName
from qb_cluster.quantization.observers import DECAY, make_observer
from qb_cluster.selfcheck import laws
from qb_cluster.selfcheck.check import Check
from qb_cluster.selfcheck.sources import gaussian, laplace

_EXAMPLES: Final = (256, 1024)
_OUTLIER: Final = 1e6


def check_observers() -> Iterator[Check]:
    """Check every observer; takes a second."""
    values = gaussian(_EXAMPLES)
    yield from _ranges(values)
    for bits, (step, _) in laws.GAUSSIAN_NARROW.items():
        clip = step * (2 ** (bits - 1) - 1)
        got = _clip("mse", values, bits, symmetric=True)
        law = "optimal Gaussian, clip in σ"
        yield Check(f"observer mse a{bits} symmetric", law, clip, got, 0.015 * clip)
    yield from _aciq("Gaussian, clip in σ", values, laws.ACIQ_GAUSSIAN)
    yield from _aciq("Laplace, clip in b", laplace(_EXAMPLES), laws.ACIQ_LAPLACE)
    yield from _outlier(values)


def _ranges(values: NDArray[np.float32]) -> Iterator[Check]:
    law = "maximum seen, in σ"
    yield Check("observer minmax", law, float(values.max()), _clip("minmax", values), 0.0)
    quantile = float(stats.norm.ppf(0.99995))
    got = _clip("percentile", values)
    yield Check("observer percentile 99.99", "Gaussian quantile, in σ", quantile, got, 0.02)
    highs = values.max(axis=1).astype(np.float64)
    keeps = DECAY ** np.arange(len(highs))[::-1]
    keeps[1:] *= 1 - DECAY
    got = _clip("moving_average", values)
    law = "Σ decay^k · maximum, in σ"
    yield Check("observer moving_average", law, float(keeps @ highs), got, 1e-6)


def _aciq(what: str, values: NDArray[np.float32], clips: Mapping[int, float]) -> Iterator[Check]:
    for bits, clip in clips.items():
        yield Check(
            f"observer mse a{bits}",
            f"ACIQ, {what}",
            clip,
            sum(abs(end) for end in _range("mse", values, bits)) / 2,
            0.1 * clip,
            "ACIQ is an approximation",
        )


def _outlier(values: NDArray[np.float32]) -> Iterator[Check]:
    spoilt = values.copy()
    spoilt[0, 0] = _OUTLIER
    resisting: tuple[ObserverName, ...] = ("percentile", "entropy")
    for name in resisting:
        plain = _clip(name, values)
        law = "an outlier of 1e6 moves nothing, in σ"
        yield Check(f"observer {name}", law, plain, _clip(name, spoilt), 0.05 * plain)
    law = "an outlier of 1e6 is covered"
    yield Check("observer minmax", law, _OUTLIER, _clip("minmax", spoilt), 0.0)
    # A clip c costs the outlier (o - c)² and each other value c² / (12·limit²).
    outlier, limit = 30.0, 127
    spoilt[0, 0] = outlier
    yield Check(
        "observer mse a8 symmetric",
        "an outlier of 30 is weighed by its square, clip in σ",
        outlier / (1 + values.size / (12 * limit**2)),
        _clip("mse", spoilt, symmetric=True),
        0.3,
    )


def _range(
    name: ObserverName, values: NDArray[np.float32], bits: int = 8, *, symmetric: bool = False
) -> tuple[float, float]:
    observer = make_observer(Calibration(observer=name), bits, symmetric=symmetric)
    for batch in np.array_split(values, 4):
        observer.update(batch)
    return observer.range()


def _clip(
    name: ObserverName, values: NDArray[np.float32], bits: int = 8, *, symmetric: bool = False
) -> float:
    return _range(name, values, bits, symmetric=symmetric)[1]
