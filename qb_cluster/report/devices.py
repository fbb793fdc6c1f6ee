"""Devices side by side: the same cell wherever it ran, one row each, tidy."""

from typing import Final

import pandas as pd

from qb_cluster.report.comparison import CONDITIONS

DEVICE: Final = ("device", "threads")
"""What makes a device of its own: one name with other threads is another."""

SAME: Final = (
    "dataset",
    "metric",
    "model",
    "backend",
    "scheme",
    "bits",
    "weight_bits",
    "activation_bits",
    *(name for name in CONDITIONS if name != "examples"),
)
"""What is the same in neighbouring rows. (A cell that failed does not say its examples.)"""

COLUMNS: Final = (
    *SAME,
    "metric_unit",
    *DEVICE,
    "host",
    "arch",
    "board",
    "accelerator",
    "runtime",
    "status",
    "examples",
    "value",
    "delta",
    "delta_low",
    "delta_high",
    "is_partial",
    "tolerance",
    "quality_verdict",
    "sqnr_db",
    "reference_sqnr_db",
    "latency_median_ns",
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_verdict",
    "latency_flags",
    "peak_memory_bytes",
    "cell_id",
    "baseline_cell_id",
)


def devices(cells: pd.DataFrame) -> pd.DataFrame:
    """Put the cells of a run with several devices side by side.

    Each cell is still compared with the float baseline of its own device: ``delta`` and
    ``speedup`` say what quantization does there, ``value`` and ``latency_median_ns`` what the
    device does.

    Args:
        cells: the comparison, as ``comparison.compare`` gives it.

    Returns:
        One row a cell, float baselines included, whatever its status, with ``COLUMNS``; rows
        that differ in the device alone are neighbours. Empty where all ran on one device.
    """
    if len(cells[list(DEVICE)].drop_duplicates()) < 2:
        cells = cells.iloc[:0]
    # By group of equal cells, each as far up as its first: the comparison has the device first.
    numbers = cells.groupby(list(SAME), dropna=False, sort=False).ngroup()
    beside = cells.assign(group=numbers).sort_values("group", kind="stable", ignore_index=True)
    return beside[list(COLUMNS)]
