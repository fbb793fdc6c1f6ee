"""An artifact by reference arithmetic: what the kernels that run it are held against."""

from hashlib import blake2b
from typing import Final

from qb_cluster.contracts import Artifact
from qb_cluster.errors import KernelMismatchError, NonFiniteError, UnsupportedError
from qb_cluster.evaluation import inference
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.preparation import Preparation

EXAMPLES: Final = 64
"""The first of the evaluation part. Reference arithmetic is slow, and a kernel that is wrong in one
example of ten shows in as many."""


def by_reference(
    artifact: Artifact,
    digest: str,
    preparation: Preparation,
    artifacts: ArtifactFolder,
    threads: int,
) -> str | None:
    """Run an artifact's first examples by its backend's reference arithmetic.

    Args:
        artifact: of a native cell.
        digest: of its bytes.
        preparation: that made it.
        artifacts: where the outputs are kept.
        threads: of the runtime.

    Returns:
        The name that the outputs are kept under; ``None`` where the backend has no reference for
        it.

    Raises:
        KernelMismatchError: they are not finite.
        CellError: the reference cannot run it.
    """
    make = getattr(preparation.backend, "reference", None)
    if make is None:
        return None
    content = preparation.content
    parts = ("own", preparation.backend_digest, digest, content.dataset, str(EXAMPLES))
    name = blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
    if artifacts.get_twin(name) is None:
        loaded = preparation.loaded
        first = next(inference.batches(loaded.dataset.inputs, EXAMPLES))
        try:
            outputs = inference.run(make(artifact, loaded.model, threads), first, EXAMPLES)
        except UnsupportedError:
            return None
        except NonFiniteError as error:
            raise KernelMismatchError(
                f"the artifact makes no sense: by its runtime's own reference arithmetic {error}"
            ) from None
        artifacts.put_twin(name, outputs)
    return name
