"""Agreement: one model under one scheme, on every backend and device, each against each."""

import functools
import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qb_cluster.evaluation.deviation import deviation
from qb_cluster.report.comparison import CONDITIONS, in_order
from qb_cluster.report.records import are_baselines, is_baseline
from qb_cluster.storage import Folder
from qb_cluster.store.reading import StoredRun, read_predictions

SAME: Final = (
    "dataset",
    "metric",
    "model",
    "scheme",
    "bits",
    "weight_bits",
    "activation_bits",
    *(name for name in CONDITIONS if name not in {"execution", "examples"}),
)
"""What the cells of one matrix share. (A cell that failed does not say its examples.)"""

_RUNS_ON: Final = ["backend", "device", "threads"]
_MEMBER: Final = (*_RUNS_ON, "execution", "cell_id")
COLUMNS: Final = (
    *SAME,
    "is_baseline",
    *_MEMBER,
    *(f"other_{name}" for name in _MEMBER),
    "top1_agreement",
    "sqnr_db",
)
_KEPT_IN_MEMORY: Final = 16  # a matrix has two members a backend and device


def agreement(run: StoredRun) -> pd.DataFrame:
    """Compare backends and devices with each other, pair by pair.

    A matrix is made for each model, scheme, bit-width and calibration that has outputs from two
    backends or more, or from one on two devices or more; a device is a name and a number of
    threads. Its members are those cells and their float baselines, whose ``execution`` is
    ``float`` here. The float baselines also have a matrix of their own, where ``is_baseline``.

    Returns:
        One row an ordered pair of different members, with ``COLUMNS``. ``top1_agreement`` is the
        share of examples with the same largest output, from the table ``predictions``; null
        without classes. ``sqnr_db`` is 10 log10(Σx² / Σ(x-y)²) with x from ``cell_id`` and y from
        ``other_cell_id``; infinite when equal, null where one side's outputs were not kept.
    """
    results = in_order(run.results[run.results["status"].isin(("ok", "kernel_mismatch"))])
    floats = results[are_baselines(results)].set_index("cell_id", drop=False)
    matrices = []
    kinds, places = (
        results.groupby(names, dropna=False).ngroup() for names in (list(SAME), _RUNS_ON)
    )
    several = places.groupby(kinds).transform("nunique") > 1  # most groups have one place alone
    for _, cells in results[several].groupby(list(SAME), dropna=False, sort=False):
        baselines = floats[floats.index.isin(cells["baseline_cell_id"])]
        members = pd.concat([cells, baselines]).drop_duplicates("cell_id")
        same = cells.iloc[0][list(SAME)]
        same["is_baseline"] = bool(are_baselines(cells).all())
        matrices.append((same, members))
    ids = {cell_id for _, members in matrices for cell_id in members["cell_id"]}
    pairs = _Pairs(run.folder, read_predictions(run.folder, ids) if ids else {})
    rows = [row for same, members in matrices for row in _matrix(same, members, pairs)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    shared = {name: run.results[name].dtype for name in (*SAME, "threads")}
    shared["other_threads"] = shared["threads"]
    return frame.astype(
        shared | {"is_baseline": bool, "top1_agreement": np.float64, "sqnr_db": np.float64}
    )


def _matrix(same: pd.Series, members: pd.DataFrame, pairs: "_Pairs") -> Iterator[dict[str, Any]]:
    cells = members.to_dict("records")
    for cell in cells:
        for other in cells:
            if cell is not other and pairs.are_known(cell, other):
                yield {
                    **{str(name): value for name, value in same.items()},
                    **_named(cell, ""),
                    **_named(other, "other_"),
                    "top1_agreement": pairs.top1(cell["cell_id"], other["cell_id"]),
                    "sqnr_db": pairs.sqnr_db(cell["outputs_digest"], other["outputs_digest"]),
                }


def _named(cell: dict[Any, Any], prefix: str) -> dict[str, Any]:
    execution = "float" if is_baseline(cell) else cell["execution"]
    return {f"{prefix}{name}": cell[name] for name in _MEMBER} | {f"{prefix}execution": execution}


class _Pairs:
    """Compares two cells by what is on disk of them.

    Args:
        run: the run folder.
        predictions: by cell id.
    """

    def __init__(self, run: Folder, predictions: dict[str, pa.Table]) -> None:
        self._predictions = predictions
        outputs = functools.lru_cache(_KEPT_IN_MEMORY)(functools.partial(_outputs, run))

        @functools.cache  # a pair of float baselines is in the matrix of every scheme
        def sqnr_db(digest: str, other: str) -> float | None:
            x, y = outputs(digest), outputs(other)
            if x is None or y is None or x.shape != y.shape:
                return None
            return deviation(x, y).sqnr_db

        self._sqnr_db = sqnr_db

    def are_known(self, cell: dict[Any, Any], other: dict[Any, Any]) -> bool:
        """Tell whether anything is there to compare."""
        return all(
            one["cell_id"] in self._predictions or pd.notna(one["outputs_digest"])
            for one in (cell, other)
        )

    def sqnr_db(self, digest: str | None, other: str | None) -> float | None:
        """Compare outputs, the first being the reference."""
        if pd.isna(digest) or pd.isna(other):
            return None
        return self._sqnr_db(digest, other)

    def top1(self, cell_id: str, other: str) -> float | None:
        """Compare predicted classes of the same examples in the same order."""
        one, two = self._predictions.get(cell_id), self._predictions.get(other)
        if one is None or two is None or not one["example_id"].equals(two["example_id"]):
            return None
        if one["predicted"].null_count or two["predicted"].null_count:
            return None
        share: float | None = pc.mean(pc.equal(one["predicted"], two["predicted"])).as_py()
        return share


def _outputs(run: Folder, digest: str) -> NDArray[Any] | None:
    try:
        kept = io.BytesIO(run.read(f"artifacts/{digest}.npy"))
        found: NDArray[Any] = np.load(kept, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # gone, or damaged
        return None
    return found
