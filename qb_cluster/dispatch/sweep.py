"""The driver's loop: events of a pool into the scheduler, its actions into pool and store."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from qb_cluster.catalog.content import cell_key, scheme_digest
from qb_cluster.contracts import Cell, Content, FinishedCell
from qb_cluster.dispatch.admission import Past
from qb_cluster.dispatch.events import (
    Action,
    Event,
    Finish,
    Keep,
    Kill,
    Notice,
    Start,
    Stop,
    Tick,
    Waiting,
)
from qb_cluster.dispatch.pool import Pool
from qb_cluster.dispatch.scheduler import Scheduler
from qb_cluster.errors import PoolError
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.run_folder import RunFolder

COMMIT_EVERY_S: Final = 1.0
COMMIT_EVERY_ROWS: Final = 2_000
STRANDED_S: Final = 120.0
LOOK_EVERY_S: Final = 2.0


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
        on_finish: called with cells once their rows are on disk.
        on_notice: called with what the user should know.
        is_rerun: whether a cell that has a row of some status is to run again nevertheless.
        on_phase: called when the run gets to another phase: "loading models", "running cells".
        stranded_s: seconds to wait for a node that serves what is left, when nothing else runs.

    Attributes:
        written: rows written by this run, by status.
    """

    def __init__(
        self,
        plan: Iterable[Cell],
        folder: RunFolder,
        make_pool: Callable[[], Pool],
        on_finish: Callable[[Sequence[FinishedCell]], None],
        on_notice: Callable[[str], None],
        is_rerun: Callable[[Cell, str], bool] = lambda cell, status: False,  # noqa: ARG005
        on_phase: Callable[[str], None] = lambda phase: None,  # noqa: ARG005
        stranded_s: float = STRANDED_S,
    ) -> None:
        kept = {
            cell_id: (entry.outcome, entry.attempt)
            for cell_id, entry in folder.stage_outcomes().items()
        }
        past = Past(folder.finished(), kept, folder.content_keys(), _key_today, is_rerun)
        self.written: Counter[str] = Counter()
        self._scheduler = Scheduler(plan, past)
        self._folder = folder
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._on_finish = on_finish
        self._on_notice = on_notice
        self._on_phase = on_phase
        self._phase = ""
        self._batch = _Batch()
        self._committed_at = time.monotonic()
        self._stranded_s = stranded_s
        self._ran_at = time.monotonic()
        self._is_stopping = False

    def stop(self) -> None:
        """Let what runs end, and start nothing new. Safe to call from a signal handler."""
        self._is_stopping = True

    def run(self) -> None:
        """Run until every cell has its row, or ``stop`` was called.

        Whatever ends it, what has ended by then is committed.

        Raises:
            PoolError: no workers can be had, or none for what is left.
            RunFolderError: results cannot be written.
        """
        try:
            self._act(self._scheduler.on(Tick(), time.monotonic()))
            if not self._scheduler.is_done:
                self._pool = self._make_pool()
                if not self._pool.can_kill:
                    self._scheduler.forgo_deadlines()
                with _seldom_collected():
                    self._loop(self._pool)
        finally:
            try:
                self._commit()
            finally:
                if self._pool is not None:
                    self._pool.close()

    def _loop(self, pool: Pool) -> None:
        self._ran_at = time.monotonic()
        while not self._scheduler.is_done:
            events: list[Event] = pool.wait(self._patience()) or [Tick()]
            if self._is_stopping:
                events.append(Stop())
            for event in events:
                self._act(self._scheduler.on(event, time.monotonic()))
            if any(isinstance(event, Waiting) and event.is_taken for event in events):
                self._ran_at = time.monotonic()  # others do
            self._refuse_to_wait_forever()
            late = time.monotonic() - self._committed_at >= COMMIT_EVERY_S
            if late or len(self._batch) >= COMMIT_EVERY_ROWS:
                self._commit()

    def _patience(self) -> float:
        """Give the seconds until a deadline passes, a commit is due, or waiting gets too long.

        It is seconds at most: somebody may have called ``stop``.
        """
        due = [self._scheduler.next_deadline(), time.monotonic() + LOOK_EVERY_S]
        if due[0] is None:
            due.append(self._ran_at + self._stranded_s)
        if len(self._batch):
            due.append(self._committed_at + COMMIT_EVERY_S)
        now = time.monotonic()
        return min(max(0.0, at - now) for at in due if at is not None)

    def _refuse_to_wait_forever(self) -> None:
        if reasons := self._scheduler.without_prospect():
            raise PoolError(
                f"what is left runs on boards that are given up: {'; '.join(reasons)}. Finished "
                "cells are kept: run the same command again"
            )
        now = time.monotonic()
        if self._scheduler.next_deadline() is not None:
            self._ran_at = now
        stranded = now - self._ran_at >= self._stranded_s and self._scheduler.stranded()
        if stranded:
            what = ", ".join(f"{count} for '{device.label}'" for device, count in stranded.items())
            raise PoolError(
                f"nothing has run for {self._stranded_s:g} s: there is no node, and no board that "
                f"answers, for what is left ({what} at least); bring one up, then run the same "
                "command again. Finished cells are kept"
            )

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(worker, tasks) if self._pool is not None:
                    self._enter("loading models", after="")
                    self._pool.start(worker, tasks)
                case Kill(worker) if self._pool is not None:
                    self._pool.kill(worker)
                case Keep(outcome, attempt):
                    self._batch.stages.append(JournalEntry(outcome, attempt))
                case Finish(ended):
                    self._batch.cells.append(_dated(ended))
                case Notice(text):
                    self._on_notice(text)

    def _enter(self, phase: str, after: str) -> None:
        if self._phase == after:
            self._phase = phase
            self._on_phase(phase)

    def _commit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._committed_at = time.monotonic()
        self._folder.commit_stages(batch.stages)
        self._folder.commit_cells(batch.cells)
        if batch.stages or any(ended.attempt > 0 for ended in batch.cells):
            self._enter("running cells", after="loading models")
        if batch.cells:
            self.written.update(ended.status for ended in batch.cells)
            self._on_finish(batch.cells)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Look for cycles seldom: values of the loop have none, and there are thousands at a time."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _key_today(cell: Cell, content: Content, fingerprint: str | None) -> str:
    return cell_key(cell, content, scheme_digest(cell.scheme), fingerprint)


def _dated(ended: FinishedCell) -> FinishedCell:
    """Say when a cell was given up, where no outcome does."""
    gave_up = not ended.outcomes or ended.outcomes[-1].status != ended.status
    if gave_up and ended.attempt > 0:
        return replace(ended, finished_at=datetime.now(UTC))
    return ended
