"""Telling a kernel that computes something else from a scheme that costs accuracy."""

from typing import Final

from qb_cluster.evaluation.deviation import Deviation

MARGIN_DB: Final = 10.0
MARGIN_AGREEMENT: Final = 0.25


def is_mismatch(native: Deviation, simulated: Deviation) -> bool:
    """Tell whether native outputs are far worse than the same scheme simulated.

    Rounding elsewhere, other group sizes or clipped ranges move a kernel a few dB from its
    simulation. More than 10 dB, or a quarter of the examples changing their class where the
    simulation keeps them, is another computation. The second test is for few bits, where even
    a right kernel has an SQNR near zero.

    Args:
        native: of the native outputs against float.
        simulated: of the simulated outputs against float, on the same examples.
    """
    if native.sqnr_db < simulated.sqnr_db - MARGIN_DB:
        return True
    if native.top1_agreement is None or simulated.top1_agreement is None:
        return False
    return native.top1_agreement < simulated.top1_agreement - MARGIN_AGREEMENT
