"""A cell that has ended, and all that is known about how."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from qb_cluster.contracts.cell import Cell, Status
from qb_cluster.contracts.coverage import partial_reason
from qb_cluster.contracts.outcome import Outcome


@dataclass(frozen=True, slots=True)
class FinishedCell:
    """A cell that is done, for better or worse.

    Attributes:
        outcomes: of its stages, in order; empty when it was never run. The last of them has
            the cell's status, unless a stage after it never came back.
        status: of its row.
        error: why, unless the status is ok; for ``partial``, which part.
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


def fate(cell: Cell, outcomes: Sequence[Outcome]) -> tuple[Status, str | None]:
    """Give the status and the error of a cell whose stages have all come back.

    It is that of the last stage; but a cell that went well, and quantized only a part of what its
    scheme covers, is ``partial``.

    Args:
        cell: the cell.
        outcomes: of its stages, in order.
    """
    last = outcomes[-1]
    if last.status != "ok" or cell.is_baseline:
        return last.status, last.error
    found = {name: value for outcome in outcomes for name, value in outcome.values.items()}
    rounds = cell.execution == "native" and found.get("activation_scope") is not None
    integer = found.get("integer_layer_mac_share") if rounds else None
    covered = found.get("covered_share")
    # Some backends do not tell what a scheme covers.
    reason = partial_reason(found.get("quantized_share") if covered is None else covered, integer)
    return ("partial", reason) if reason else ("ok", None)
