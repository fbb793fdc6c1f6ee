"""One cell as somebody would write it for Ray Tune or Hydra: everything it needs, from scratch.

The very code that ours runs: the same plug-ins, the same evaluation. What ours does beyond it,
holding native kernels against a simulation of the scheme, is left out.
"""

import functools
import math
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Artifact, Cell, Quantization
from qb_cluster.errors import CellError
from qb_cluster.evaluation import comparison, inference

CELLS = "QB_BENCH_CELLS"
"""Environment variable: a file of pickled cells, which the number of a cell counts in."""


def keep_cells(cells: Sequence[Cell], file: Path) -> None:
    """Write cells where ``measure`` finds them, in every process started from here on."""
    file.write_bytes(pickle.dumps(list(cells)))
    os.environ[CELLS] = str(file)


def measure(number: int) -> dict[str, float | None]:
    """Load, convert, run in float, quantize, run and compare; give the metrics.

    A cell that cannot be quantized or run has none.
    """
    cell = _cells()[number]
    try:
        return _measure(cell)
    except CellError:
        return {}


def quantization(cell: Cell) -> Quantization:
    """Say what a quantized cell asks its backend for."""
    if cell.scheme is None or cell.bits is None or cell.execution is None:
        raise ValueError(f"cell {cell.cell_id} asks for no quantization")
    scheme = plugins.make("scheme", cell.scheme)
    return Quantization(scheme, cell.bits, cell.execution, cell.calibration)


def _measure(cell: Cell) -> dict[str, float | None]:
    measure, threads = cell.measure, cell.device.threads
    backend = plugins.make("backend", cell.backend)
    dataset = load_dataset(cell.dataset).evaluation(measure.examples)
    model = plugins.make("model", cell.model)
    metric = plugins.find("metric", measure.metric.target)

    def run(artifact: Artifact) -> NDArray[np.float32]:
        executable = backend.open(artifact, lambda: model, threads)
        return inference.run(executable, dataset.inputs, measure.batch_size)

    baseline = backend.convert(lambda: model, dataset.example())
    outputs = run(baseline)
    if cell.is_baseline:
        return {"value": comparison.score(metric, outputs, dataset.targets).value}
    calibration = None
    if cell.calibration is not None:
        calibration = dataset.calibration_sample(cell.calibration)
    artifact = backend.quantize(lambda: model, baseline, quantization(cell), calibration)
    found = comparison.compare(metric, outputs, run(artifact), dataset.targets, measure.confidence)
    return {key: value for key, value in found.items() if value is None or math.isfinite(value)}


@functools.cache
def _cells() -> list[Cell]:
    cells: list[Cell] = pickle.loads(Path(os.environ[CELLS]).read_bytes())
    return cells
