"""A cell that has ended, and all that is known about how."""

from dataclasses import dataclass
from datetime import datetime

from qb_cluster.contracts.cell import Cell, Status
from qb_cluster.contracts.outcome import Outcome


@dataclass(frozen=True, slots=True)
class FinishedCell:
    """A cell that is done, for better or worse.

    Attributes:
        outcomes: of its stages, in order; empty when it was never run. The last of them has
            the cell's status, unless a stage after it never came back.
        status: of its row.
        error: why, unless the status is ok.
        attempt: how often its last stage was tried; 0 when it was never run.
        story: what became of attempts that never came back: when, where, what, last log lines.
        finished_at: when it was given up; ``None`` where its last outcome says.
    """

    cell: Cell
    outcomes: tuple[Outcome, ...]
    status: Status
    error: str | None = None
    attempt: int = 0
    story: str | None = None
    finished_at: datetime | None = None
