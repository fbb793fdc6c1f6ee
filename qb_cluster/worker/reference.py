"""The simulated twin of a native cell: what its kernels are held against."""

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import backend_digest, scheme_digest
from qb_cluster.catalog.counted import TWIN
from qb_cluster.contracts import Cell, Content, Ref
from qb_cluster.evaluation import inference
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.preparation import Preparation


@dataclass(frozen=True, slots=True)
class Twin:
    """What a cell's kernels are held against, and the name that it is kept under."""

    name: str
    outputs: NDArray[np.float32]


def simulated_twin(
    cell: Cell, simulator: Ref, preparation: Preparation, artifacts: ArtifactFolder
) -> Twin:
    """Give the outputs of a cell's scheme, simulated: once for all backends that run it.

    Args:
        cell: a native cell.
        simulator: the backend that simulates.
        preparation: of the cell itself.
        artifacts: where the outputs of twins are kept.

    Raises:
        CellError: it cannot be simulated.
    """
    backend = plugins.make("backend", simulator)
    digest = backend_digest(backend, simulator)
    name = twin_name(cell, preparation.content, digest)
    kept = artifacts.get_twin(name)
    if kept is None:
        simulation = replace(preparation, backend=backend, backend_digest=digest)
        kept = _simulate(cell, simulation)
        artifacts.put_twin(name, kept)
    else:
        preparation.loaded.reused.add("twin")
    return Twin(name, kept)


def twin_name(cell: Cell, content: Content, simulator: str) -> str:
    """Name the outputs of a simulated cell by all that decides them.

    Args:
        cell: the simulated cell, or the native one whose twin it is; less what ``counted.TWIN``
            names.
        content: of its float baseline.
        simulator: digest of the backend that simulates.
    """
    digests = (simulator, content.model, content.dataset, scheme_digest(cell.scheme))
    return blake2b("\n".join((*digests, TWIN.text(cell))).encode(), digest_size=16).hexdigest()


def _simulate(cell: Cell, simulation: Preparation) -> NDArray[np.float32]:
    baseline = simulation.convert().artifact
    artifact = simulation.quantize(cell, baseline, "simulated").artifact
    loaded = simulation.loaded
    executable = simulation.backend.open(artifact, loaded.model, cell.device.threads)
    return inference.run(executable, loaded.dataset.inputs, cell.measure.batch_size)
