"""Power of outputs and of their differences, example by example."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def signal_power(outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Give Σx² of each example; shape (n,)."""
    rows = outputs.reshape(len(outputs), -1).astype(np.float64)
    power: NDArray[np.float64] = np.sum(rows**2, axis=1)
    return power


def noise_power(reference: NDArray[Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Give Σ(x - y)² of each example; shape (n,).

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != outputs.shape:
        raise ValueError(f"outputs have the shapes {reference.shape} and {outputs.shape}")
    return signal_power(reference.astype(np.float64) - outputs)
