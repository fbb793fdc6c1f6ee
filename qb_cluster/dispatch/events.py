"""What the scheduler hears and what it asks for. Plain values: a test can write any order."""

from dataclasses import dataclass
from typing import Literal

from qb_cluster.contracts import Cell, Outcome, Status, Task

Cause = Literal["crashed", "oom"]


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker is ready.

    Attributes:
        worker: its name, never used again after it is lost.
        node: where it is.
        cores: the cores of the node; equal for all workers of one node.
    """

    worker: str
    node: str
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone, with whatever it was doing."""

    worker: str
    cause: Cause
    message: str


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A worker finished a stage, well or badly."""

    worker: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; deadlines may have."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asked to stop: what runs may end, and nothing new is started."""


Event = WorkerUp | WorkerLost | TaskEnded | Tick | Stop


@dataclass(frozen=True, slots=True)
class Start:
    """Hand a stage to an idle worker."""

    worker: str
    task: Task


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker whose stage ran past its deadline. ``WorkerLost`` is not expected for it."""

    worker: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Make a quality outcome durable: a stage or a cell that is still to come needs it."""

    outcome: Outcome
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The cell has ended: write its row.

    Attributes:
        outcomes: of its stages, in order; empty when it was never run.
        status: of the row.
        error: why, unless the status is ok.
        attempt: how often its last stage was tried; 0 when it was never run.
    """

    cell: Cell
    outcomes: tuple[Outcome, ...]
    status: Status
    error: str | None
    attempt: int


Action = Start | Kill | Keep | Finish
