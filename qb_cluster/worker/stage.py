"""What a stage is given, and what it leaves."""

from dataclasses import dataclass

from qb_cluster.catalog.dataset import Dataset
from qb_cluster.contracts import (
    Backend,
    LayerSensitivity,
    LoadModel,
    Predictions,
    QualityResult,
    SampleBlock,
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a cell names, loaded. The model only when it is asked for."""

    backend: Backend
    dataset: Dataset
    model: LoadModel


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage leaves besides the columns of the row."""

    quality: QualityResult | None = None
    predictions: Predictions | None = None
    samples: tuple[SampleBlock, ...] = ()
    layers: tuple[LayerSensitivity, ...] = ()
