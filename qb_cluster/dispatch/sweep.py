"""The driver's loop: events of a pool into the scheduler, its actions into pool and store."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qb_cluster.contracts import Cell, Outcome
from qb_cluster.dispatch.events import Action, Event, Finish, Keep, Kill, Start, Stop, Tick
from qb_cluster.dispatch.pool import Pool
from qb_cluster.dispatch.scheduler import Scheduler
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.rows import FinishedCell, not_run_row, result_row
from qb_cluster.store.run_folder import RunFolder

COMMIT_EVERY_S = 1.0
COMMIT_EVERY_ROWS = 2_000


@dataclass(slots=True)
class _Batch:
    """What has ended and is not on disk yet."""

    stages: list[JournalEntry] = field(default_factory=list)
    cells: list[FinishedCell] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.stages) + len(self.cells)


class Sweep:
    """One run of a plan in a folder.

    Args:
        plan: the cells.
        folder: where results go, and what earlier runs left.
        make_pool: brings up workers; called only if there is something to run.
        spec_digest: recorded in every row.
        on_finish: called with each row once it is on disk.

    Attributes:
        written: rows written by this run, by status.
    """

    def __init__(
        self,
        plan: Iterable[Cell],
        folder: RunFolder,
        make_pool: Callable[[], Pool],
        spec_digest: str,
        on_finish: Callable[[Mapping[str, Any]], None],
    ) -> None:
        kept = {
            cell_id: (entry.outcome, entry.attempt)
            for cell_id, entry in folder.stage_outcomes().items()
        }
        self.written: Counter[str] = Counter()
        self._scheduler = Scheduler(plan, folder.finished(), kept)
        self._folder = folder
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._spec_digest = spec_digest
        self._on_finish = on_finish
        self._batch = _Batch()
        self._committed_at = time.monotonic()
        self._is_stopping = False

    def stop(self) -> None:
        """Let what runs end, and start nothing new. Safe to call from a signal handler."""
        self._is_stopping = True

    def run(self) -> None:
        """Run until every cell has its row, or ``stop`` was called.

        Whatever ends it, what has ended by then is committed.

        Raises:
            PoolError: no workers can be had.
            RunFolderError: results cannot be written.
        """
        try:
            self._act(self._scheduler.on(Tick(), time.monotonic()))
            if not self._scheduler.is_done:
                self._pool = self._make_pool()
                self._loop(self._pool)
        finally:
            try:
                self._commit()
            finally:
                if self._pool is not None:
                    self._pool.close()

    def _loop(self, pool: Pool) -> None:
        while not self._scheduler.is_done:
            events: list[Event] = pool.wait(self._patience()) or [Tick()]
            if self._is_stopping:
                events.append(Stop())
            for event in events:
                self._act(self._scheduler.on(event, time.monotonic()))
            late = time.monotonic() - self._committed_at >= COMMIT_EVERY_S
            if late or len(self._batch) >= COMMIT_EVERY_ROWS:
                self._commit()

    def _patience(self) -> float | None:
        """Give the seconds until a deadline passes or a commit is due."""
        due = [self._scheduler.next_deadline()]
        if len(self._batch):
            due.append(self._committed_at + COMMIT_EVERY_S)
        now = time.monotonic()
        return min((max(0.0, at - now) for at in due if at is not None), default=None)

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(worker, task) if self._pool is not None:
                    self._pool.start(worker, task)
                case Kill(worker) if self._pool is not None:
                    self._pool.kill(worker)
                case Keep(outcome, attempt):
                    self._batch.stages.append(JournalEntry(outcome, attempt))
                case Finish():
                    self._batch.cells.append(FinishedCell(self._row(action), action.outcomes))

    def _row(self, finish: Finish) -> dict[str, Any]:
        cell, outcomes = finish.cell, finish.outcomes
        if outcomes and outcomes[-1].status != finish.status:
            # Its last stage never came back: what the stages before it found stays.
            outcomes = (*outcomes, _lost_stage(cell, finish))
        if outcomes:
            return result_row(cell, outcomes, finish.attempt, self._spec_digest)
        return not_run_row(
            cell,
            finish.status,
            finish.error or "",
            self._spec_digest,
            attempt=finish.attempt,
            finished_at=datetime.now(UTC),
        )

    def _commit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._committed_at = time.monotonic()
        self._folder.commit_stages(batch.stages)
        self._folder.commit_cells(batch.cells)
        for cell in batch.cells:
            self.written[cell.row["status"]] += 1
            self._on_finish(cell.row)


def _lost_stage(cell: Cell, finish: Finish) -> Outcome:
    now = datetime.now(UTC)
    return Outcome(cell.cell_id, "latency", finish.status, now, now, error=finish.error)
