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
from qb_cluster.contracts.board import SshBoard
from qb_cluster.contracts.calibration import Calibration, ObserverName
from qb_cluster.contracts.cell import (
    MEASURED,
    STATUSES,
    Cell,
    Device,
    Latency,
    Measure,
    Ref,
    Status,
)
from qb_cluster.contracts.finished import FinishedCell, fate
from qb_cluster.contracts.outcome import (
    PREPARED,
    ArtifactRef,
    Content,
    LayerSensitivity,
    Outcome,
    Predictions,
    QualityResult,
    SampleBlock,
    Stage,
)
from qb_cluster.contracts.scheme import (
    FLOAT,
    Activations,
    Execution,
    Granularity,
    NumberFormat,
    Quantization,
    Scheme,
    WeightQuantizer,
    WeightRange,
)
from qb_cluster.contracts.task import Task

__all__ = [
    "FLOAT",
    "MEASURED",
    "PREPARED",
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
    "Content",
    "Device",
    "Executable",
    "Execution",
    "FinishedCell",
    "Granularity",
    "Latency",
    "LayerSensitivity",
    "LoadModel",
    "Measure",
    "NumberFormat",
    "ObserverName",
    "Outcome",
    "Predictions",
    "QualityResult",
    "Quantization",
    "Ref",
    "SampleBlock",
    "Scheme",
    "SshBoard",
    "Stage",
    "Status",
    "Support",
    "Task",
    "WeightQuantizer",
    "WeightRange",
    "fate",
]
