"""Metrics: arrays in, one score an example (or one number) out. Higher is better.

A metric is any callable ``metric(outputs, targets, **options)`` over the model's first output
(float32, n examples along axis 0) and the dataset's targets. It returns float scores of shape
``(n,)``, whose mean is the value, or a single float. Scores of 0 and 1 are taken for right and
wrong: such a metric gets McNemar's test and flips.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from qb_cluster.errors import CellError

_LEVEL: Final = 0.05  # of the test against chance
_AXES: Final = 2  # examples, classes
_FEWEST_CLASSES: Final = 2
_REMEDY: Final = (
    "name a metric of your own, such as measure: {metric: my_metrics:score} (docs/plugins.md)"
)


def accuracy(outputs: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Score 1 where the largest of the class scores is the target class.

    Args:
        outputs: class scores, shape ``(n, classes)``, two classes or more.
        targets: class indices, shape ``(n,)``, integers from 0 to ``classes - 1``. Those that
            count from 1 to ``classes`` are taken as they are; ``doubts`` tells of them.

    Returns:
        0.0 or 1.0 for each example, shape ``(n,)``.

    Raises:
        CellError: they are something else, so that this is no classification.
    """
    for why in _refusals(outputs, targets):
        raise CellError(f"accuracy is for classes, and {why}; {_REMEDY}")
    right: NDArray[np.bool_] = np.argmax(outputs, axis=1) == targets
    return right.astype(np.float64)


def doubts(outputs: NDArray[np.float32], targets: NDArray[Any]) -> Iterator[str]:
    """Say what makes the accuracy of a float model doubtful; nothing where all is well.

    Chance is the share of the most frequent class, which always answering it would give. A model
    is above it where the exact binomial test, one-sided at 5 %, rejects that share.

    Args:
        outputs: what ``accuracy`` takes.
        targets: likewise.
    """
    classes, n = outputs.shape[1], len(targets)
    if _count_from_1(targets, classes):
        yield (
            f"targets run from 1 to {classes} for {classes} classes, and accuracy counts classes "
            "from 0: subtract 1 in the dataset"
        )
    right = int(accuracy(outputs, targets).sum())
    chance = int(np.unique(targets, return_counts=True)[1].max()) / n
    if special.bdtrc(right - 1, n, chance) > _LEVEL:
        yield (
            f"an accuracy of {right / n:.1%} is not shown to be above the {chance:.1%} of always "
            f"answering the most frequent class (exact binomial test, one-sided, 5 %, n = {n:,}): "
            "check the weights, the preprocessing and the order of the classes"
        )


def _refusals(outputs: NDArray[np.float32], targets: NDArray[Any]) -> Iterator[str]:
    """Say what is no classification."""
    if outputs.ndim != _AXES:
        yield f"the model's outputs have the shape {outputs.shape}, not (n, classes)"
        return
    classes = outputs.shape[1]
    if classes < _FEWEST_CLASSES:
        yield f"the model's outputs have {classes} column, where the largest says nothing"
    if targets.ndim != 1 or targets.dtype.kind not in "iub":
        kind = "text" if targets.dtype.kind in "OSU" else str(targets.dtype)
        yield f"the targets are {kind} of shape {targets.shape}, not integers of shape (n,)"
    elif len(targets):
        low, high = int(targets.min()), int(targets.max())
        if (low < 0 or high >= classes) and not _count_from_1(targets, classes):
            columns = f"the model has outputs for 0 to {classes - 1}"
            yield f"the targets run from {low} to {high}, where {columns}"


def _count_from_1(targets: NDArray[Any], classes: int) -> bool:
    return int(targets.min()) == 1 and int(targets.max()) == classes
