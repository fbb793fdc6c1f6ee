"""The Inference Runner: all examples through an executable, batch by batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays, Executable
from qb_cluster.errors import CellError, NonFiniteError


def batches(inputs: Arrays, size: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Cut inputs into batches of at most ``size`` examples, in order."""
    count = len(next(iter(inputs.values())))
    for start in range(0, count, size):
        yield {key: array[start : start + size] for key, array in inputs.items()}


def run(executable: Executable, inputs: Arrays, batch_size: int) -> NDArray[np.float32]:
    """Run every example and give the model's first output.

    Returns:
        float32, n examples along axis 0.

    Raises:
        CellError: the executable returns nothing, or another number of examples.
        NonFiniteError: the output holds NaN or infinity.
    """
    collected = []
    for batch in batches(inputs, batch_size):
        outputs = executable(batch)
        if not outputs:
            raise CellError("the model returned no output")
        first = next(iter(outputs.values()))
        expected = len(next(iter(batch.values())))
        if first.ndim == 0 or len(first) != expected:
            raise CellError(
                f"the model turned {expected} examples into an output of shape {first.shape}; "
                "examples must stay along axis 0"
            )
        collected.append(first)
    result = np.concatenate(collected)
    finite = np.isfinite(result).reshape(len(result), -1).all(axis=1)
    if not finite.all():
        raise NonFiniteError(
            f"the output holds NaN or infinity for {np.sum(~finite)} of {len(result)} examples"
        )
    return result
