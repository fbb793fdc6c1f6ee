"""The comparison: every cell, float baselines included, one row each, tidy."""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qb_cluster.contracts.judgement import Judgement
from qb_cluster.report import verdicts
from qb_cluster.report.pareto import pareto_front
from qb_cluster.report.records import are_baselines
from qb_cluster.report.same import same_as

POINTS: Final = "points"
OWN_UNIT: Final = "1"

CONDITIONS: Final = (
    "execution",
    "batch_size",
    "examples",
    "calibration_samples",
    "calibration_seed",
    "calibration_observer",
    "calibration_percentile",
)
"""What may differ between cells that share model, backend, scheme and bits."""

COLUMNS: Final = (
    "cell_id",
    "baseline_cell_id",
    "sweep",
    "model",
    "dataset",
    "backend",
    "device",
    "threads",
    "host",
    "arch",
    "board",
    "accelerator",
    "runtime",
    "scheme",
    "bits",
    "weight_bits",
    "activation_bits",
    "execution",
    "status",
    "metric",
    "metric_unit",
    "value",
    "baseline_value",
    "delta",
    "delta_low",
    "delta_high",
    "confidence",
    *verdicts.COLUMNS,
    "pareto",
    "p_value",
    "flips_worse",
    "flips_better",
    "examples",
    "dataset_examples",
    "top1_agreement",
    "sqnr_db",
    "same_as",
    "baseline_sqnr_db",
    "baseline_doubt",
    "simulator",
    "reference_sqnr_db",
    "reference_agreement",
    "recipe_gap_db",
    "kernel_worst_db",
    "effective_bits",
    "bits_per_weight",
    "quantized_share",
    "integer_mac_share",
    "integer_layer_mac_share",
    "coverage",
    "covered_share",
    "activation_scope",
    "fallback_ops",
    "artifact_bytes",
    "weight_bytes",
    "baseline_artifact_bytes",
    "size_ratio",
    "latency_median_ns",
    "baseline_latency_median_ns",
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_verdict",
    "latency_flags",
    "peak_memory_bytes",
    "batch_size",
    "calibration_samples",
    "calibration_seed",
    "calibration_observer",
    "calibration_percentile",
    "error",
    "notes",
)

_IN_THE_METRICS_UNIT: Final = (
    "value",
    "baseline_value",
    "delta",
    "delta_low",
    "delta_high",
    "tolerance",
)

_ORDER: Final = {
    "dataset": True,
    "metric": True,
    "device": True,
    "threads": True,
    "model": True,
    "backend": True,
    "scheme": True,
    "weight_bits": False,
    "activation_bits": False,
    "execution": True,
    "calibration_samples": True,
    "calibration_seed": True,
    "calibration_observer": True,
    "calibration_percentile": True,
    "cell_id": True,
}
"""Sort keys, and whether ascending: the order does not depend on who finished first."""


def compare(results: pd.DataFrame, judgement: Judgement) -> pd.DataFrame:
    """Turn results into the comparison.

    Args:
        results: the table ``results``, as ``store.reading`` gives it.
        judgement: what the sweep accepts.

    Returns:
        One row per cell, whatever its status, with the columns ``COLUMNS``. Added to those of
        ``results`` are ``size_ratio`` (float bytes ÷ quantized bytes), what ``verdicts.judge``
        finds, ``pareto``, see ``pareto.pareto_front``, and ``same_as``, see ``same.same_as``.
        The metric's columns are as printed: where ``metric_unit`` is ``points`` in percent and
        percentage points, else in the metric's own unit.
    """
    cells = results.copy()
    cells["size_ratio"] = _size_ratio(cells)
    cells[list(verdicts.COLUMNS)] = verdicts.judge(cells, judgement)
    # What quantized only a part is shown, and neither ranked nor starred: it proves no scheme.
    competes = (cells["status"] == "ok") & (cells["execution"] != "simulated")
    cells["pareto"] = pareto_front(cells, competes)
    in_points = is_in_points(cells, judgement)
    units = in_points.map({True: POINTS, False: OWN_UNIT})
    cells["metric_unit"] = units.mask(cells["metric"].isna())
    for name in _IN_THE_METRICS_UNIT:
        cells[name] = cells[name].astype("Float64").mask(in_points, 100 * cells[name])
    ordered = in_order(cells)
    ordered["same_as"] = same_as(ordered)
    return ordered[list(COLUMNS)]


def is_in_points(cells: pd.DataFrame, judgement: Judgement) -> pd.Series:
    """Tell which cells' metric is a share: known as one, or a mean of rights and wrongs."""
    compared = cells[cells["delta"].notna()]
    without = set(compared.loc[compared["flips_worse"].isna(), "metric"])
    right_or_wrong = set(compared["metric"]) - without
    return cells["metric"].isin({*judgement.shares, *right_or_wrong})


def baselines(comparison: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of the float baselines."""
    return comparison[are_baselines(comparison)]


def quantized(comparison: pd.DataFrame) -> pd.DataFrame:
    """Give the other rows."""
    return comparison[~are_baselines(comparison)]


def _size_ratio(cells: pd.DataFrame) -> NDArray[np.float64]:
    floats, own = (
        cells[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("baseline_artifact_bytes", "artifact_bytes")
    )
    ratio: NDArray[np.float64] = np.full(len(cells), np.nan)
    np.divide(floats, own, out=ratio, where=own > 0)
    return ratio


def in_order(cells: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by what they are."""
    return cells.sort_values(
        list(_ORDER), ascending=list(_ORDER.values()), ignore_index=True, kind="stable"
    )
