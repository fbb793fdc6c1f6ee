"""Artifacts, made by a backend or taken from the cache of those made before."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import KEY_VERSION, scheme_digest
from qb_cluster.catalog.counted import ARTIFACT
from qb_cluster.catalog.model import model_kind
from qb_cluster.catalog.value_digest import value_digest
from qb_cluster.contracts import Artifact, Backend, Cell, Content, Execution, Quantization
from qb_cluster.errors import UnsupportedError
from qb_cluster.nodes.environment import fingerprint
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.stage import Loaded


@dataclass(frozen=True, slots=True)
class Prepared:
    """An artifact.

    Attributes:
        prepare_ns: what making it took, now or when it was made.
        is_reused: whether it was made before.
    """

    artifact: Artifact
    prepare_ns: int
    is_reused: bool


@dataclass(frozen=True, slots=True)
class Preparation:
    """Prepares artifacts of one model by one backend.

    Attributes:
        backend: the cell's own, or one that simulates for it.
        backend_digest: of it.
        content: of the cell's float baseline.
        loaded: what the cell names.
        cache: artifacts made before.
    """

    backend: Backend
    backend_digest: str
    content: Content
    loaded: Loaded
    cache: ArtifactCache

    def convert(self) -> Prepared:
        """Give the float artifact.

        Raises:
            UnsupportedError: the backend does not take this kind of model.
            CellError: it cannot be converted.
        """
        kind = model_kind(self.loaded.model())
        if kind not in self.backend.takes:
            raise UnsupportedError(
                f"{self.backend.name} takes models of kind {', '.join(self.backend.takes)}; this "
                f"one is of kind {kind}"
            )
        example = self.loaded.dataset.example()
        return self._made(lambda: self.backend.convert(self.loaded.model, example), "float")

    def quantize(self, cell: Cell, baseline: Artifact, execution: Execution) -> Prepared:
        """Give the quantized artifact.

        Raises:
            CellError: it cannot be quantized.
        """
        if cell.scheme is None or cell.bits is None:
            raise ValueError(f"cell {cell.cell_id} asks for no quantization")
        scheme = plugins.make("scheme", cell.scheme)
        quantization = Quantization(scheme, cell.bits, execution, cell.calibration)
        examples = None
        if cell.calibration is not None:
            examples = self.loaded.dataset.calibration_sample(cell.calibration)
        return self._made(
            lambda: self.backend.quantize(self.loaded.model, baseline, quantization, examples),
            scheme_digest(cell.scheme),
            ARTIFACT.text(replace(cell, execution=execution)),
            None if examples is None else value_digest(list(examples.items())),
        )

    def _made(self, make: Callable[[], Artifact], *asked: Any) -> Prepared:
        key = self._key(asked)
        if (kept := self.cache.get(key)) is not None:
            return Prepared(*kept, is_reused=True)
        started = time.perf_counter_ns()
        artifact = make()
        prepare_ns = time.perf_counter_ns() - started
        self.cache.put(key, artifact, prepare_ns)
        return Prepared(artifact, prepare_ns, is_reused=False)

    def _key(self, asked: tuple[Any, ...]) -> str:
        """Hash all that decides an artifact, this machine among it: some are packed for a CPU."""
        example = self.loaded.dataset.example()
        shapes = [(name, str(array.dtype), array.shape) for name, array in example.items()]
        parts = [KEY_VERSION, fingerprint(), self.backend_digest, self.content.model, shapes, asked]
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
