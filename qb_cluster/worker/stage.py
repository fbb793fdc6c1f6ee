"""What a stage is given, and what it leaves."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qb_cluster.catalog.dataset import Dataset
from qb_cluster.contracts import (
    Backend,
    Content,
    LayerSensitivity,
    LoadModel,
    Predictions,
    QualityResult,
    SampleBlock,
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a cell names, loaded. The model only when it is asked for.

    Attributes:
        content: says what the names stand for; loads the model.
        reused: which of it was there already, and what else the stage finds ready.
    """

    backend: Backend
    dataset: Dataset
    model: LoadModel
    content: Callable[[], Content]
    reused: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage leaves besides the columns of the row."""

    quality: QualityResult | None = None
    content: Content | None = None
    predictions: Predictions | None = None
    samples: tuple[SampleBlock, ...] = ()
    layers: tuple[LayerSensitivity, ...] = ()
