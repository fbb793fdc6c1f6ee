"""Telling a kernel that computes something else from a scheme that costs accuracy."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.examples import noise_power, signal_power

MARGIN_DB: Final = 15.0
MARGIN_AGREEMENT: Final = 0.25


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Native and simulated outputs of one scheme, each against float.

    Attributes:
        native_db: SQNR of the native outputs, median over the examples, in dB.
        simulated_db: the same of the simulated ones.
        native_agreement: share of examples whose class is the float model's; ``None`` where
            outputs are no class scores.
        simulated_agreement: the same of the simulated ones.
    """

    native_db: float
    simulated_db: float
    native_agreement: float | None
    simulated_agreement: float | None

    @property
    def is_mismatch(self) -> bool:
        """Whether native outputs are far worse than the same scheme simulated.

        Rounding elsewhere and other group sizes move a kernel a few dB from its simulation.
        More than 15 dB, or a quarter of the examples changing their class where the
        simulation keeps them, is another computation. The second test is for few bits, where
        even a right kernel has an SQNR near zero.
        """
        if self.native_db < self.simulated_db - MARGIN_DB:
            return True
        if self.native_agreement is None or self.simulated_agreement is None:
            return False
        return self.native_agreement < self.simulated_agreement - MARGIN_AGREEMENT


def faithfulness(
    reference: NDArray[Any], native: NDArray[Any], simulated: NDArray[Any]
) -> Faithfulness:
    """Compare native and simulated outputs.

    The median over examples, not the SQNR over all of them, since a runtime may clip its
    outputs at the calibrated range: that costs a few examples much, which is the scheme's doing,
    while a wrong kernel is wrong on all.

    Args:
        reference: float outputs, n examples along axis 0.
        native: of the kernels, the same shape.
        simulated: of quantize-dequantize arithmetic, the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    return Faithfulness(
        _median_db(reference, native),
        _median_db(reference, simulated),
        deviation(reference, native).top1_agreement,
        deviation(reference, simulated).top1_agreement,
    )


def _median_db(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = signal_power(reference) / noise_power(reference, outputs)
        return float(10 * np.log10(np.nanmedian(ratios)))
