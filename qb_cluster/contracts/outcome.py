"""What a worker gives back for one stage of one cell. Plain values that travel anywhere."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts.backend import ArtifactFacts
from qb_cluster.contracts.cell import Status
from qb_cluster.contracts.coverage import LayerKind

Stage = Literal["content", "runtime", "prepare", "quality", "latency"]

PREPARED: Final = "prepared"
"""Key of an environment for that of whoever prepared, where it is not whoever ran."""


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """An artifact kept in the run folder, by the digest of its bytes."""

    digest: str
    format: str
    size_bytes: int
    facts: ArtifactFacts


@dataclass(frozen=True, slots=True)
class Content:
    """Digests of what a float baseline names, taken once it is loaded: names may move on.

    Attributes:
        model: weights and code.
        dataset: ids and arrays of both parts, so the preprocessing too.
        backend: the plug-in's code and the versions of what it stands on.
        metric: its code.
        runtime: name and version of what runs its artifacts, where that is apart from what made
            them: on a board, say. ``None`` elsewhere, where the backend's digest tells.
    """

    model: str
    dataset: str
    backend: str
    metric: str
    runtime: str | None = None

    def changes(self, before: "Content") -> list[str]:
        """Name what differs."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(before, field.name)
        ]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """What the quality stage leaves for others: everything later stages and cells need.

    Attributes:
        artifact: the artifact that was evaluated.
        outputs_digest: digest of the evaluation outputs kept in the run folder; always for
            baselines, whose outputs other cells are compared with, and for other cells unless
            they are too large to keep.
        content: what the names stood for; baselines only.
        twin: name of the kept outputs that the kernels will be held against; of a prepare stage.
        own: name of the kept outputs of the artifact by reference arithmetic; of a prepare stage.
        first_digest: digest of the kept outputs for the first example, where ``outputs_digest`` is
            ``None``: what is timed is held against them.
        doubt: of a baseline: why no change from it means anything; ``None`` where it does.
    """

    artifact: ArtifactRef
    outputs_digest: str | None
    content: Content | None = None
    twin: str | None = None
    own: str | None = None
    first_digest: str | None = None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Per-example results of one cell, in evaluation order; all of length ``n``.

    Attributes:
        example_ids: stable ids.
        targets: class index of the target, or -1 where targets are no class indices.
        predicted: index of the largest output, or -1 where outputs are no class scores.
        scores: the metric's value per example, float64; NaN where it has none.
    """

    example_ids: NDArray[np.str_]
    targets: NDArray[np.int64]
    predicted: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Raw timings of one arm in one block, in the order they were taken.

    Attributes:
        block: number of the ABBA block, from 0.
        position: order of this run of samples within its block, from 0.
        arm: ``baseline`` or ``quantized``.
        latency_ns: int64 nanoseconds.
    """

    block: int
    position: int
    arm: Literal["baseline", "quantized"]
    latency_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What quantizing one layer does to the outputs.

    Attributes:
        layer: its name in the model.
        parameters: of its weight.
        macs: multiply-accumulates for one example.
        mode: ``only`` this layer is quantized, or ``all_but`` this one.
        bits: ``wN`` or ``wNaM``, of what is quantized.
        sqnr_db: of the model's outputs against float.
        weight_sqnr_db: of the layer's own weight; ``None`` in mode ``all_but``.
        expected_weight_sqnr_db: what a Gaussian tensor of the same rows would give at these
            bits; ``None`` in mode ``all_but``, and where no law is known.
    """

    layer: str
    parameters: int
    macs: int
    mode: Literal["only", "all_but"]
    bits: str
    sqnr_db: float
    weight_sqnr_db: float | None
    expected_weight_sqnr_db: float | None
    kind: LayerKind | None = None
    shape: tuple[int, ...] = ()
    weight: str = ""
    same_bits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one stage of one cell ended.

    Attributes:
        started_at, finished_at: with a time zone.
        values: columns of the result row that this stage knows.
        error: one sentence or two for the row; ``None`` when ok.
        traceback: the whole story, for the row's ``traceback`` column and ``--debug``.
        quality: given when a quality stage ended ok; a prepare stage's has no outputs.
        content: given when a content stage ended ok.
        predictions: quality stages only.
        samples: latency stages only.
        layers: of simulated cells that ask for it.
        env_id: the environment it ran in; see ``environment``.
        environment: description of the worker's machine and libraries.
    """

    cell_id: str
    stage: Stage
    status: Status
    started_at: datetime
    finished_at: datetime
    values: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    quality: QualityResult | None = None
    content: Content | None = None
    predictions: Predictions | None = None
    samples: tuple[SampleBlock, ...] = ()
    layers: tuple[LayerSensitivity, ...] = ()
    env_id: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
