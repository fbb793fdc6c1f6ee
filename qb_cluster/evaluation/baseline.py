"""Judging a float baseline: is it the user's model, and can anything be told from it?"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.errors import BaselineMismatchError
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.examples import noise_power, signal_power

FULL: Final = "f32"
LEAST_DB: Final = 40.0
"""Conversions to float32 leave 80 dB and more; a runtime that computes in bfloat16, some 34."""
LEAST_NARROW_DB: Final = 20.0
"""Where a runtime says that it computes in fewer bits."""
SAME_DB: Final = 80.0
"""Two runs of one batch, whose sums may be taken in another order."""
_FAINTEST: Final = 1e-4
"""An example's signal counts as at least this share of the mean one: an output near zero, such as
the probability of what is not there, has no digits of its own."""


def examples_db(reference: NDArray[Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Give the SQNR of each example in dB; infinite where its outputs are equal.

    Args:
        reference: n examples along axis 0.
        outputs: the same shape.

    Returns:
        Shape (n,).
    """
    signal, noise = signal_power(reference), noise_power(reference, outputs)
    signal = np.maximum(signal, _FAINTEST * signal.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = 10 * np.log10(signal / noise)
    return np.where(noise == 0, np.inf, ratios)


def check(reference: NDArray[Any], outputs: NDArray[Any], precision: str) -> float:
    """See that a float artifact computes the model.

    Args:
        reference: of the model in its own framework, n examples along axis 0.
        outputs: of the artifact, for the same examples.
        precision: that the runtime says it computes float32 in; ``FULL`` is all of it.

    Returns:
        SQNR over all n examples, in dB; infinite where all are equal.

    Raises:
        BaselineMismatchError: it does not: the shapes differ, or an example is further off than
            rounding explains.
    """
    if reference.shape != outputs.shape:
        raise BaselineMismatchError(
            f"the float artifact gives outputs of shape {outputs.shape} for {len(outputs)} "
            f"examples, and the model in its own framework {reference.shape}"
        )
    least = LEAST_DB if precision == FULL else LEAST_NARROW_DB
    found = examples_db(reference, outputs)
    if far := int(np.sum(~(found >= least))):
        raise BaselineMismatchError(
            f"the float artifact is not the model: for {far} of {len(found)} examples its outputs "
            f"are less than {least:g} dB from the model's in its own framework ({found.min():.1f} "
            "dB at worst); what is said of its quantized forms would be said of another model: "
            "update the converter, or leave this backend out"
        )
    return deviation(reference, outputs).sqnr_db


def doubt(outputs: NDArray[np.float32], again: NDArray[np.float32]) -> str | None:
    """Say why nothing can be told from a baseline; ``None`` where something can.

    Args:
        outputs: for the first examples, n ≥ 1 along axis 0.
        again: from a second run of them.
    """
    apart = deviation(outputs, again).sqnr_db
    if apart < SAME_DB:
        return (
            f"the float model answers differently each time ({apart:.1f} dB between two runs of "
            "the same examples): call eval(), or take what draws random numbers out of it"
        )
    return None


def is_constant(outputs: NDArray[np.float32]) -> bool:
    """Tell whether a model gives the same for every example, of which there are several."""
    return len(outputs) > 1 and bool((outputs == outputs[:1]).all())


CONSTANT: Final = (
    "the float model gives the same outputs for every example, so that nothing can be lost: load "
    "trained weights (some heads start at zero)"
)
