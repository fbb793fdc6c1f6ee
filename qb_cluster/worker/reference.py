"""The simulated twin of a native cell: what its kernels are held against."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import Backend, Cell, Quantization, Ref
from qb_cluster.errors import UnsupportedError
from qb_cluster.evaluation import inference
from qb_cluster.evaluation.deviation import top1
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.stage import Loaded


def simulated_outputs(
    cell: Cell,
    simulator: Ref,
    baseline: NDArray[np.float32],
    loaded: Loaded,
    artifacts: ArtifactFolder,
) -> NDArray[np.float32]:
    """Give the outputs of a cell's scheme, simulated: once for all backends that run it.

    Args:
        cell: a native cell.
        simulator: the backend that simulates.
        baseline: the float model's outputs.
        loaded: what the cell names.
        artifacts: where the outputs of twins are kept.

    Raises:
        CellError: it cannot be simulated.
    """
    name = twin_name(cell, simulator, baseline)
    kept = artifacts.get_twin(name)
    if kept is None:
        kept = _simulate(cell, plugins.make("backend", simulator), loaded)
        artifacts.put_twin(name, kept)
    return kept


def twin_name(cell: Cell, simulator: Ref, baseline: NDArray[np.float32]) -> str:
    """Name the outputs of a simulated cell by what decides them.

    The classes that the float model predicts stand for its content, since a name may point at
    other weights tomorrow. They are nearly always the same on every backend, which the outputs
    themselves are not, to the last digit; where they differ the twin is computed once more.
    """
    classes = top1(baseline)
    content = np.round(baseline, 2) if classes is None else classes
    parts = (cell.model, cell.dataset, cell.scheme, cell.bits, cell.calibration, simulator)
    described = [None if part is None else asdict(part) for part in parts]
    measure = [cell.measure.examples, cell.measure.batch_size]
    text = json.dumps([described, measure], sort_keys=True).encode()
    return hashlib.blake2b(text + content.tobytes(), digest_size=16).hexdigest()


def _simulate(cell: Cell, simulator: Backend, loaded: Loaded) -> NDArray[np.float32]:
    kind = model_kind(loaded.model())
    if kind not in simulator.takes:
        raise UnsupportedError(f"{simulator.name} does not simulate models of kind {kind}")
    if cell.scheme is None or cell.bits is None:
        raise ValueError(f"cell {cell.cell_id} is float and has no twin")
    dataset = loaded.dataset
    quantization = Quantization(
        plugins.make("scheme", cell.scheme), cell.bits, "simulated", cell.calibration
    )
    calibration = None if cell.calibration is None else dataset.calibration_sample(cell.calibration)
    baseline = simulator.convert(loaded.model, dataset.example())
    artifact = simulator.quantize(loaded.model, baseline, quantization, calibration)
    executable = simulator.open(artifact, loaded.model, cell.device.threads)
    return inference.run(executable, dataset.inputs, cell.measure.batch_size)
