"""Sensitivity: one row a cell and layer, both modes side by side."""

from typing import Final

import pandas as pd

from qb_cluster.report.comparison import CONDITIONS, in_order

_CELL: Final = (
    "cell_id",
    "dataset",
    "metric",
    "device",
    "threads",
    "model",
    "backend",
    "scheme",
    "bits",
    "weight_bits",
    "activation_bits",
    *CONDITIONS,
)
_LAYER: Final = ("layer", "parameters", "macs")
COLUMNS: Final = (
    *_CELL,
    *_LAYER,
    "layer_bits",
    "only_sqnr_db",
    "all_but_sqnr_db",
    "all_sqnr_db",
    "weight_sqnr_db",
    "expected_weight_sqnr_db",
    "excess_db",
)


def sensitivity(results: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Put what is known of each layer into one row.

    Args:
        results: the table ``results``.
        layers: the table ``layers``, one row a cell, layer and mode.

    Returns:
        Rows in the order of cells, the layers of each worst first, with ``COLUMNS``:
        ``only_sqnr_db`` and ``all_but_sqnr_db`` are of the outputs with only this layer
        quantized, and with all others; ``all_sqnr_db`` with all of them; ``excess_db`` is
        ``expected_weight_sqnr_db - weight_sqnr_db``, positive for a weight that is rounded worse
        than a Gaussian one would be.
    """
    cells = in_order(results)
    cells["order"] = range(len(cells))
    only, all_but = (layers[layers["mode"] == mode] for mode in ("only", "all_but"))
    rows = only.rename(columns={"sqnr_db": "only_sqnr_db", "bits": "layer_bits"}).merge(
        all_but[["cell_id", "layer", "sqnr_db"]].rename(columns={"sqnr_db": "all_but_sqnr_db"}),
        on=["cell_id", "layer"],
        how="left",
    )
    rows = rows.merge(
        cells[[*_CELL, "sqnr_db", "order"]].rename(columns={"sqnr_db": "all_sqnr_db"}),
        on="cell_id",
    )
    rows["excess_db"] = rows["expected_weight_sqnr_db"] - rows["weight_sqnr_db"]
    rows = rows.sort_values(["order", "only_sqnr_db", "layer"], ignore_index=True, kind="stable")
    return rows[list(COLUMNS)]
