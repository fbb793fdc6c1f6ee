"""The simulated twin of a native cell: what its kernels are held against."""

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import backend_digest, scheme_digest
from qb_cluster.catalog.counted import TWIN
from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import Backend, Cell, Content, Ref
from qb_cluster.contracts.coverage import Scope
from qb_cluster.errors import UnsupportedError
from qb_cluster.evaluation import inference
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.preparation import Preparation, asked


@dataclass(frozen=True, slots=True)
class Twin:
    """What a cell's kernels are held against.

    Attributes:
        name: that it is kept under.
        simulator: label of the backend that simulated.
        outputs: of the simulation.
        note: what it covers otherwise than the kernels do; empty where they cover the same.
    """

    name: str
    simulator: str
    outputs: NDArray[np.float32]
    note: str = ""


def simulated_twin(
    cell: Cell, simulator: Ref, preparation: Preparation, artifacts: ArtifactFolder
) -> Twin:
    """Give the outputs of a cell's scheme, simulated: once for all backends that run it.

    Args:
        cell: a native cell.
        simulator: the backend that simulates; where it turns out not to take the model, the
            cell's own does.
        preparation: of the cell itself.
        artifacts: where the outputs of twins are kept.

    Raises:
        CellError: it cannot be simulated.
    """
    try:
        return _twin(cell, simulator, preparation, artifacts)
    except UnsupportedError:
        kinds = getattr(preparation.backend, "simulates", ())
        if simulator == cell.backend or model_kind(preparation.loaded.model()) not in kinds:
            raise
        return _twin(cell, cell.backend, preparation, artifacts)


def _twin(cell: Cell, simulator: Ref, preparation: Preparation, artifacts: ArtifactFolder) -> Twin:
    backend = plugins.make("backend", simulator)
    supported = backend.support(asked(cell, "simulated"))
    if not supported.supported:
        raise UnsupportedError(supported.reason)
    digest = backend_digest(backend, simulator)
    scope, note = _scope(cell, preparation.backend, backend)
    name = twin_name(cell, preparation.content, digest, scope)
    kept = artifacts.get_twin(name)
    if kept is None:
        simulation = replace(preparation, backend=backend, backend_digest=digest)
        kept = _simulate(cell, simulation, scope)
        artifacts.put_twin(name, kept)
    else:
        preparation.loaded.reused.add("twin")
    return Twin(name, simulator.label, kept, note)


def _scope(cell: Cell, native: Backend, simulator: Backend) -> tuple[Scope | None, str]:
    """Tell which activations are simulated, and what the kernels round otherwise."""
    wanted = native.support(asked(cell, "native")).scope
    found = simulator.support(asked(cell, "simulated", wanted))
    if found.supported:
        return found.scope, ""
    own = simulator.support(asked(cell, "simulated")).scope
    return own, f"the kernels round '{wanted}' activations, and their simulation '{own}'"


def twin_name(cell: Cell, content: Content, simulator: str, scope: Scope | None) -> str:
    """Name the outputs of a simulated cell by all that decides them.

    Args:
        cell: the simulated cell, or the native one whose twin it is; less what ``counted.TWIN``
            names.
        content: of its float baseline.
        simulator: digest of the backend that simulates.
        scope: which activations it rounds.
    """
    scheme = f"{scheme_digest(cell.scheme)} {scope}"
    digests = (simulator, content.model, content.dataset, scheme)
    return blake2b("\n".join((*digests, TWIN.text(cell))).encode(), digest_size=16).hexdigest()


def _simulate(cell: Cell, simulation: Preparation, scope: Scope | None) -> NDArray[np.float32]:
    baseline = simulation.convert().artifact
    artifact = simulation.quantize(cell, baseline, "simulated", scope).artifact
    loaded = simulation.loaded
    executable = simulation.backend.open(artifact, loaded.model, cell.device.threads)
    return inference.run(executable, loaded.dataset.inputs, cell.measure.batch_size)
