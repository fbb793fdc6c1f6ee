"""Whether what is timed is what was judged."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.errors import KernelMismatchError
from qb_cluster.evaluation.deviation import deviation

LEAST_DB: Final = 30.0
"""Sums of floats depend on a batch's size, and now and then an integer rounds to its neighbour."""


def check_timed(
    what: str,
    judged: NDArray[Any],
    timed: NDArray[Any],
    reference: NDArray[Any] | None,
) -> None:
    """See that an executable gives the output for an example that quality was judged by.

    Args:
        what: it is, for the message.
        judged: the output of the quality stage for the first example, one along axis 0.
        timed: what the timed executable gives for it.
        reference: the float model's. What is farther from float than 30 dB may be as far from
            itself, since one integer that rounds the other way is the same noise again.

    Raises:
        KernelMismatchError: it does not.
    """
    if timed.shape != judged.shape:
        raise KernelMismatchError(
            f"what is timed is not what was judged: {what} gives an output of shape "
            f"{timed.shape} for one example, and gave {judged.shape}"
        )
    least = LEAST_DB
    if reference is not None:
        own = deviation(reference, judged).sqnr_db
        least = min(least, own) if np.isfinite(own) else least
    found = deviation(judged, timed).sqnr_db
    # Both zero is no number, and nothing is wrong then.
    if not np.isfinite(timed).all() or found < least:
        raise KernelMismatchError(
            f"what is timed is not what was judged: for the first example alone, as it is timed, "
            f"{what} gives an output {found:.1f} dB from the one it gave in a batch of the quality "
            f"stage, where {least:.1f} dB is the least that rounding explains; the runtime "
            "computes other things for other sizes of batch"
        )
