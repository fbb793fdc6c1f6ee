"""The Pareto front: what nothing else beats in quality, size and latency at once."""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

GROUP: Final = ("dataset", "metric", "device", "threads", "model")
"""Only cells of one model at one place compete."""


def pareto_front(cells: pd.DataFrame, competes: pd.Series) -> pd.Series:
    """Tell which cells are on the front, by the values measured.

    A cell is beaten by one that is at least as good in the metric, the size of the artifact and
    the time of an example, and better in one of them. Where a group has no latencies at all, the
    other two count.

    Args:
        cells: with the columns of ``GROUP``, ``value``, ``artifact_bytes``, ``latency_median_ns``.
        competes: which of them may be on the front and beat others; of these only those that
            have a value for everything that counts.

    Returns:
        Booleans, with the index of ``cells``.
    """
    front = pd.Series(data=False, index=cells.index)
    for _, group in cells[competes].groupby(list(GROUP), dropna=False, sort=False):
        costs = np.column_stack(
            [
                -group["value"].to_numpy(np.float64, na_value=np.nan),
                group["artifact_bytes"].to_numpy(np.float64, na_value=np.nan),
                group["latency_median_ns"].to_numpy(np.float64, na_value=np.nan),
            ]
        )
        costs = costs[:, ~np.isnan(costs).all(axis=0)]
        known = ~np.isnan(costs).any(axis=1)
        front.loc[group.index[known]] = ~_beaten(costs[known])
    return front


def _beaten(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows another one beats, shape (n,); lower is better in every column."""
    beaten = np.zeros(len(costs), dtype=bool)
    for number, own in enumerate(costs):
        better = (costs <= own).all(axis=1) & (costs < own).any(axis=1)
        beaten[number] = better.any()
    return beaten
