"""The comparison: every quantized cell beside its float baseline, one row each, tidy."""

from typing import Final

import numpy as np
import pandas as pd

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
    "value",
    "baseline_value",
    "delta",
    "delta_low",
    "delta_high",
    "confidence",
    "quality_verdict",
    "p_value",
    "flips_worse",
    "flips_better",
    "examples",
    "top1_agreement",
    "sqnr_db",
    "simulator",
    "reference_sqnr_db",
    "reference_agreement",
    "bits_per_weight",
    "quantized_share",
    "integer_mac_share",
    "fallback_ops",
    "artifact_bytes",
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


def compare(results: pd.DataFrame) -> pd.DataFrame:
    """Turn results into the comparison.

    Args:
        results: the table ``results``, as ``store.reading`` gives it.

    Returns:
        One row a quantized cell, whatever its status, with the columns ``COLUMNS``. Added are
        ``size_ratio`` (float bytes ÷ quantized bytes) and ``quality_verdict``, see ``verdicts``.
    """
    cells = results[results["scheme"] != "float"].copy()
    floats, own = (
        cells[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("baseline_artifact_bytes", "artifact_bytes")
    )
    cells["size_ratio"] = np.divide(floats, own, out=np.full(len(cells), np.nan), where=own > 0)
    cells["quality_verdict"] = verdicts(cells)
    return in_order(cells)[list(COLUMNS)]


def baselines(results: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of the float baselines, in order."""
    return in_order(results[results["scheme"] == "float"])


def in_order(cells: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by what they are."""
    return cells.sort_values(
        list(_ORDER), ascending=list(_ORDER.values()), ignore_index=True, kind="stable"
    )


def verdicts(cells: pd.DataFrame) -> pd.Series:
    """Say of each cell whether it lost.

    Returns:
        ``worse`` or ``better`` where the interval of delta excludes zero, ``undecided`` where it
        does not or where there is none, null where the cell is not ok or has no delta.
    """
    words = np.select(
        [
            (cells["status"] != "ok") | cells["delta"].isna(),
            cells["delta_high"] < 0,
            cells["delta_low"] > 0,
        ],
        ["", "worse", "better"],
        default="undecided",
    )
    series = pd.Series(words, index=cells.index, dtype="str")
    return series.mask(series == "")
