"""What the scheduler hears and what it asks for. Plain values: a test can write any order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qb_cluster.contracts import FinishedCell, Outcome, SshBoard, Task

Cause = Literal["crashed", "oom", "node_lost"]


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker is ready.

    Attributes:
        worker: its name, never used again after it is lost.
        node: where it is.
        cores: the cores of the node; equal for all workers of one node.
        labels: what the node says it is; equal for all workers of one node.
        fingerprint: names the hardware that timings depend on, see ``nodes.environment``.
        board: the board that it runs artifacts on; ``None`` where it runs them itself.
        gpus: 1 when it has a GPU to itself; its fingerprint names that too.
    """

    worker: str
    node: str
    cores: tuple[int, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    board: SshBoard | None = None
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone, with whatever it was doing.

    Attributes:
        cause: ``node_lost`` when its whole node is gone.
        message: what happened, one line.
        story: when, where (host, process) and its last log lines, for the row of a cell that
            keeps doing this.
    """

    worker: str
    cause: Cause
    message: str
    story: str = ""


@dataclass(frozen=True, slots=True)
class TasksEnded:
    """A worker finished the first call it had, each stage of it well or badly.

    Attributes:
        outcomes: of the call's tasks, in their order.
    """

    worker: str
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; deadlines may have."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asked to stop: what runs may end, and nothing new is started."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A worker cannot come up yet.

    Attributes:
        text: what for; the user is told once.
        is_taken: whether others have its node or board: then it will when they are done, and that
            may take its time.
    """

    text: str
    is_taken: bool = False


@dataclass(frozen=True, slots=True)
class BoardGivenUp:
    """A board will have no worker any more in this run.

    Attributes:
        reason: why, and what to do.
    """

    board: SshBoard
    reason: str


Event = WorkerUp | WorkerLost | TasksEnded | Tick | Stop | Waiting | BoardGivenUp


@dataclass(frozen=True, slots=True)
class Start:
    """Hand a call to a worker: stages to run one after the other.

    The worker may have another call in hand; it takes this one up afterwards.
    """

    worker: str
    tasks: tuple[Task, ...]


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
    """The cell has ended: write its row, in place of the one it may have from an earlier run."""

    ended: FinishedCell


@dataclass(frozen=True, slots=True)
class Notice:
    """Tell the user."""

    text: str


Action = Start | Kill | Keep | Finish | Notice
