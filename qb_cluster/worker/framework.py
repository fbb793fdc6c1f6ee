"""A model in its own framework: what its float artifacts are held against."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from typing import Final

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import backend_digest
from qb_cluster.catalog.model import ModelKind, model_kind
from qb_cluster.contracts import Backend, Ref
from qb_cluster.errors import PlugInError
from qb_cluster.evaluation import inference
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.preparation import Preparation
from qb_cluster.worker.reference import Twin

EXAMPLES: Final = 8
"""The first of the evaluation part: a lost bias shows in each."""


def in_framework(preparation: Preparation, artifacts: ArtifactFolder, threads: int) -> Twin | None:
    """Give the model's outputs in its own framework for the first examples.

    Once for all backends that convert the model.

    Args:
        preparation: of a float baseline.
        artifacts: where the outputs are kept.
        threads: of the framework.

    Returns:
        ``None`` where the backend itself is the framework, and where none is known or installed.

    Raises:
        CellError: the framework cannot run it.
    """
    home = _home(model_kind(preparation.loaded.model()))
    if home is None:
        return None
    ref, backend = home
    if type(backend) is type(preparation.backend):
        return None
    digest = backend_digest(backend, ref)
    content = preparation.content
    parts = ("float", digest, content.model, content.dataset, str(EXAMPLES))
    name = blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
    kept = artifacts.get_twin(name)
    if kept is None:
        loaded = preparation.loaded
        made = replace(preparation, backend=backend, backend_digest=digest).convert()
        executable = backend.open(made.artifact, loaded.model, threads)
        first = next(inference.batches(loaded.dataset.inputs, EXAMPLES))
        kept = inference.run(executable, first, EXAMPLES)
        artifacts.put_twin(name, kept)
    return Twin(name, ref.label, kept)


@cache
def _home(kind: ModelKind) -> tuple[Ref, Backend] | None:
    """Find the registered backend that runs models of a kind as they are."""
    return next((found for found in _registered() if kind in getattr(found[1], "home", ())), None)


def _registered() -> Iterator[tuple[Ref, Backend]]:
    for name in plugins.registered("backend"):
        ref = Ref(name, name)
        try:
            backend: Backend = plugins.make("backend", ref)
        except PlugInError:  # somebody else's, and broken: nothing that is asked for here
            continue
        if all(find_spec(module.partition(".")[0]) for module in backend.requires):
            yield ref, backend
