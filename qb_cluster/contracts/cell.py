"""A cell: one combination of the sweep, resolved, with everything that decides its numbers."""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from qb_cluster.contracts.bits import Bits
from qb_cluster.contracts.board import SshBoard
from qb_cluster.contracts.calibration import Calibration
from qb_cluster.contracts.scheme import Execution

Status = Literal[
    "ok",
    "partial",
    "failed",
    "unsupported",
    "not_applied",
    "baseline_mismatch",
    "kernel_mismatch",
    "timeout",
    "oom",
    "crashed",
]
STATUSES: tuple[str, ...] = get_args(Status)
MEASURED: Final = ("ok", "partial")
"""Those of cells that were measured. A ``partial`` one quantized less than 0.9 of what its scheme
covers: it is shown, and is no proof of the scheme."""


@dataclass(frozen=True, slots=True)
class Ref:
    """What a name in the YAML points at.

    Attributes:
        label: what the tables call it.
        target: a registered name, or ``package.module:callable``.
        options_json: keyword arguments for the callable, as JSON with sorted keys and no
            spaces: cell ids are hashes over it.
    """

    label: str
    target: str
    options_json: str = "{}"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the callable."""
        options: dict[str, Any] = json.loads(self.options_json)
        return options


@dataclass(frozen=True, slots=True)
class Device:
    """Where a cell runs.

    Attributes:
        name: ``cpu``, or the name that the spec gives to nodes with ``labels``.
        threads: threads of every session on it, in quality and in latency alike.
        labels: what a node must be, as (label, value), sorted; empty takes any node.
        backends: labels of the backends that run there; empty is all.
        ssh: a board without Ray, and how to reach it; ``None`` for nodes.
        gpus: 1 for a worker that has a GPU to itself, 0 for one that sees none.
        prepared_on: labels of the nodes that make artifacts for it, as (label, value), sorted;
            empty for its own nodes, and for any node where it is a board.
    """

    name: str = "cpu"
    threads: int = 1
    labels: tuple[tuple[str, str], ...] = ()
    backends: tuple[str, ...] = ()
    ssh: SshBoard | None = None
    gpus: int = 0
    prepared_on: tuple[tuple[str, str], ...] = ()

    @property
    def prepares(self) -> bool:
        """Whether its artifacts are made on it; elsewhere it has a runtime alone."""
        return self.ssh is None and not self.prepared_on

    @property
    def host(self) -> "Device":
        """Where its artifacts are made; itself, if it makes them."""
        return self if self.prepares else Device(labels=self.prepared_on)

    @property
    def label(self) -> str:
        """What tables and rules call it: ``cpu``, ``cpu[threads=2]``.

        One with labels or a GPU, or a board, has a name of the user's own: that says enough.
        """
        is_plain = self.threads == 1 or self.labels or self.ssh or self.gpus
        return self.name if is_plain else f"{self.name}[threads={self.threads}]"


@dataclass(frozen=True, slots=True)
class Latency:
    """How latency is measured: batch of one, float and quantized in ABBA blocks.

    Attributes:
        warmup_s: seconds of warm-up, both arms in turns, at least one run each.
        min_runs: timed runs of each arm, at least.
        min_s: timed seconds of each arm, at least.
        cap_s: seconds for the whole measurement, at most; what is missing then is flagged.
        seed: decides which arm starts each block.
    """

    warmup_s: float = 0.5
    min_runs: int = 50
    min_s: float = 1.0
    cap_s: float = 150.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured, and on how much.

    Attributes:
        metric: the metric of the comparison.
        batch_size: examples to a call in the quality stage.
        examples: evaluation examples used at most, first ones first; ``None`` is all.
        confidence: of every interval.
        latency: the protocol, or ``None`` to leave latency out.
        layers: whether simulated cells measure the sensitivity of each layer too.
    """

    metric: Ref = Ref("accuracy", "accuracy")
    batch_size: int = 64
    examples: int | None = None
    confidence: float = 0.95
    latency: Latency | None = Latency()
    layers: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results.

    Attributes:
        cell_id: 16 hex digits, a hash of everything below but ``sweep``, labels, ``reason``,
            ``timeout_s``, ``timeout_retries`` and ``simulator``.
        sweep: name of the sweep it was planned for.
        scheme: ``None`` for the float baseline.
        bits: ``None`` for the float baseline.
        execution: ``None`` when no backend supports the cell (``reason`` says why).
        reason: why it is unsupported, or simulated rather than native, or a caveat.
        calibration: given exactly when the scheme's activations are static.
        timeout_s: seconds after which one stage of the cell is killed.
        timeout_retries: how often such a stage is tried again.
        baseline_cell_id: the float cell it is compared with; its own id for a baseline.
        simulator: a backend that can simulate a native cell's scheme, so that its kernels can
            be told from the scheme; ``None`` where there is none, and for other cells.
    """

    cell_id: str
    sweep: str
    model: Ref
    dataset: Ref
    backend: Ref
    device: Device
    scheme: Ref | None
    bits: Bits | None
    execution: Execution | None
    reason: str
    calibration: Calibration | None
    measure: Measure
    timeout_s: float
    baseline_cell_id: str
    simulator: Ref | None = None
    timeout_retries: int = 0

    @property
    def is_baseline(self) -> bool:
        """Whether this is the float cell that others are compared with."""
        return self.scheme is None

    @property
    def is_timed(self) -> bool:
        """Whether it has a latency stage: never for simulated arithmetic."""
        return self.execution == "native" and self.measure.latency is not None
