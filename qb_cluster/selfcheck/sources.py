"""Test signals: quantiles in random order, so that moments are exact and runs are alike."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def _midpoints(count: int, seed: int) -> NDArray[np.float64]:
    return (np.random.default_rng(seed).permutation(count) + 0.5) / count


def gaussian(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Give values distributed as N(0, 1)."""
    values = stats.norm.ppf(_midpoints(int(np.prod(shape)), seed))
    return values.reshape(shape).astype(np.float32)


def laplace(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Give values distributed as a Laplacian with b = 1 (variance 2)."""
    values = stats.laplace.ppf(_midpoints(int(np.prod(shape)), seed))
    return values.reshape(shape).astype(np.float32)


def uniform(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Give values spread evenly over ±1."""
    values = 2 * _midpoints(int(np.prod(shape)), seed) - 1
    return values.reshape(shape).astype(np.float32)
