"""Metrics: arrays in, one score an example (or one number) out. Higher is better.

A metric is any callable ``metric(outputs, targets, **options)`` over the model's first output
(float32, n examples along axis 0) and the dataset's targets. It returns float scores of shape
``(n,)``, whose mean is the value, or a single float. Scores of 0 and 1 are taken for right and
wrong: such a metric gets McNemar's test and flips.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def accuracy(outputs: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Score 1 where the largest of the class scores is the target class.

    Args:
        outputs: class scores, shape ``(n, classes)``.
        targets: class indices, shape ``(n,)``, integers.

    Returns:
        0.0 or 1.0 for each example, shape ``(n,)``.

    Raises:
        ValueError: the shapes are others.
    """
    if outputs.ndim != 2 or targets.ndim != 1:
        raise ValueError(
            f"accuracy needs outputs (n, classes) and targets (n,), not {outputs.shape} and "
            f"{targets.shape}; name another metric under measure.metric"
        )
    right: NDArray[np.bool_] = np.argmax(outputs, axis=1) == targets
    return right.astype(np.float64)
