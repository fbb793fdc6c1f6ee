"""The shared words: values and protocols that every room, backend and plug-in speaks."""

from qb_cluster.contracts.backend import (
    Arrays,
    Artifact,
    ArtifactFacts,
    Backend,
    Executable,
    LoadModel,
    Support,
)
from qb_cluster.contracts.bits import Bits
from qb_cluster.contracts.cell import (
    STATUSES,
    Calibration,
    Cell,
    Device,
    Latency,
    Measure,
    Ref,
    Status,
)
from qb_cluster.contracts.outcome import (
    ArtifactRef,
    Outcome,
    Predictions,
    QualityResult,
    SampleBlock,
    Stage,
)
from qb_cluster.contracts.scheme import (
    Activations,
    Execution,
    Granularity,
    Quantization,
    Scheme,
    WeightQuantizer,
)
from qb_cluster.contracts.task import Task

__all__ = [
    "STATUSES",
    "Activations",
    "Arrays",
    "Artifact",
    "ArtifactFacts",
    "ArtifactRef",
    "Backend",
    "Bits",
    "Calibration",
    "Cell",
    "Device",
    "Executable",
    "Execution",
    "Granularity",
    "Latency",
    "LoadModel",
    "Measure",
    "Outcome",
    "Predictions",
    "QualityResult",
    "Quantization",
    "Ref",
    "SampleBlock",
    "Scheme",
    "Stage",
    "Status",
    "Support",
    "Task",
    "WeightQuantizer",
]
