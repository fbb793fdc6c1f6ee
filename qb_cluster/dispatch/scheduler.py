"""Who runs what next. Pure: events in, actions out; no clock, no I/O, no Ray.

A cell goes quality → latency (if it is timed). A quantized cell's quality stage waits for its
baseline's. Quality stages share a node as far as its cores go; a latency stage, and the second
try of a stage that ran out of memory, has its node to itself, and waits until no quality stage
is left for that node to run.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from qb_cluster.contracts import Cell, Outcome, QualityResult, Ref, Stage, Status, Task
from qb_cluster.dispatch.events import (
    Action,
    Event,
    Finish,
    Keep,
    Kill,
    Start,
    Stop,
    TaskEnded,
    WorkerLost,
    WorkerUp,
)

LOOKAHEAD = 4_096  # cells taken from the plan before they can run: bounds the memory
RETRIES: Mapping[str, int] = {"crashed": 1, "oom": 1}

Group = tuple[Ref, Ref, Ref]


@dataclass(frozen=True, slots=True)
class _Job:
    """A stage of a cell that waits or runs."""

    cell: Cell
    stage: Stage
    attempt: int = 1
    alone: bool = False
    baseline: QualityResult | None = None
    quality: Outcome | None = None  # the cell's own quality outcome, before its latency stage


@dataclass(frozen=True, slots=True)
class _NoBaseline:
    """A baseline that ended without a result."""

    status: str
    story: str


@dataclass(slots=True)
class _Worker:
    node: str
    group: Group | None = None  # of what it ran last: what it has loaded
    job: _Job | None = None
    cores: tuple[int, ...] = ()
    deadline: float = 0.0


class Scheduler:
    """Decides for one run.

    Args:
        plan: cells to end, baselines before the cells that need them.
        finished: status of the cells whose row is written already, by cell id.
        kept: quality outcomes that an earlier run made durable, with their attempt, by cell id.
    """

    def __init__(
        self,
        plan: Iterable[Cell],
        finished: Mapping[str, str] | None = None,
        kept: Mapping[str, tuple[Outcome, int]] | None = None,
    ) -> None:
        self._plan: Iterator[Cell] | None = iter(plan)
        self._finished = finished or {}
        self._kept = dict(kept or {})
        self._workers: dict[str, _Worker] = {}
        self._node_cores: dict[str, tuple[int, ...]] = {}
        self._shared: dict[Group, deque[_Job]] = {}
        self._alone: deque[_Job] = deque()
        self._waiting: dict[str, list[Cell]] = {}  # by the baseline they wait for
        self._baselines: dict[str, QualityResult | _NoBaseline] = {}
        self._is_stopping = False
        self._open = 0  # jobs that wait or run, and cells that wait for a baseline

    @property
    def is_done(self) -> bool:
        """Whether every cell of the plan has ended, or, after ``Stop``, every stage that ran."""
        if self._is_stopping:
            return not any(worker.job for worker in self._workers.values())
        return self._plan is None and self._open == 0

    def next_deadline(self) -> float | None:
        """Give the time at which a ``Tick`` is due; ``None`` while nothing runs."""
        return min((w.deadline for w in self._workers.values() if w.job), default=None)

    def on(self, event: Event, now: float) -> list[Action]:
        """Take an event, give what has to be done about it, in order.

        Args:
            event: what happened.
            now: seconds on any steady clock.
        """
        actions: list[Action] = []
        if isinstance(event, WorkerUp):
            self._workers[event.worker] = _Worker(event.node)
            self._node_cores[event.node] = event.cores
        elif isinstance(event, WorkerLost):
            actions += self._lost(event)
        elif isinstance(event, TaskEnded):
            actions += self._ended(event)
        elif isinstance(event, Stop):
            self._is_stopping = True
        actions += self._expire(now)
        if not self._is_stopping:
            actions += self._read_plan()
            actions += self._assign(now)
        return actions

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken. For tests."""
        for node, cores in self._node_cores.items():
            running = [w for w in self._workers.values() if w.node == node and w.job]
            used = [core for worker in running for core in worker.cores]
            assert len(used) == len(set(used)), f"{node}: a core is given twice"
            assert set(used) <= set(cores), f"{node}: a core is given that it does not have"
            alone = [w for w in running if w.job and w.job.alone]
            assert not alone or len(running) == 1, f"{node}: a stage that runs alone has company"
        queued = sum(map(len, self._shared.values())) + len(self._alone)
        running_jobs = sum(1 for w in self._workers.values() if w.job)
        waiting = sum(map(len, self._waiting.values()))
        assert self._open == queued + running_jobs + waiting, "the count of open cells is off"

    # What happened

    def _ended(self, event: TaskEnded) -> list[Action]:
        worker = self._workers.get(event.worker)
        outcome = event.outcome
        if worker is None or worker.job is None:
            return []  # late word of a worker that was given up
        job = worker.job
        if (job.cell.cell_id, job.stage) != (outcome.cell_id, outcome.stage):
            return []
        worker.job, worker.cores = None, ()
        self._open -= 1
        if outcome.status == "oom" and job.attempt <= RETRIES["oom"]:
            self._queue(replace(job, attempt=job.attempt + 1, alone=True))
            return []
        return self._settle(job, outcome)

    def _lost(self, event: WorkerLost) -> list[Action]:
        worker = self._workers.pop(event.worker, None)
        if worker is None or worker.job is None:
            return []
        job = worker.job
        self._open -= 1
        if job.attempt <= RETRIES[event.cause]:
            alone = job.alone or event.cause == "oom"
            self._queue(replace(job, attempt=job.attempt + 1, alone=alone))
            return []
        error = f"{event.message} ({job.stage} stage, {job.attempt} times)"
        return self._give_up(job, event.cause, error)

    def _expire(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, worker in list(self._workers.items()):
            if worker.job is None or worker.deadline > now:
                continue
            job = worker.job
            del self._workers[name]
            self._open -= 1
            limit = f"timeout_s = {job.cell.timeout_s:g} s"
            error = f"the {job.stage} stage ran past {limit} and was killed"
            actions += [Kill(name), *self._give_up(job, "timeout", error)]
        return actions

    def _settle(self, job: _Job, outcome: Outcome) -> list[Action]:
        """A stage came back with a verdict of its own."""
        cell = job.cell
        if job.stage == "latency":
            quality = (job.quality,) if job.quality else ()
            return [Finish(cell, (*quality, outcome), outcome.status, outcome.error, job.attempt)]
        if outcome.status != "ok" or outcome.quality is None:
            return [
                Finish(cell, (outcome,), outcome.status, outcome.error, job.attempt),
                *self._baseline_failed(cell, outcome.status, outcome.error),
            ]
        actions: list[Action] = []
        if cell.is_baseline or cell.is_timed:
            actions.append(Keep(outcome, job.attempt))
        actions += self._after_quality(cell, outcome, job)
        return actions

    def _after_quality(self, cell: Cell, outcome: Outcome, job: _Job) -> list[Action]:
        actions: list[Action] = []
        if cell.is_timed:
            baseline = outcome.quality if cell.is_baseline else job.baseline
            outcome = replace(outcome, predictions=None)  # durable already, and may be large
            self._queue(_Job(cell, "latency", alone=True, baseline=baseline, quality=outcome))
        else:
            actions.append(Finish(cell, (outcome,), "ok", None, job.attempt))
        if cell.is_baseline and outcome.quality is not None:
            self._baseline_ready(cell.cell_id, outcome.quality)
        return actions

    def _give_up(self, job: _Job, status: Status, error: str) -> list[Action]:
        """A stage never came back."""
        outcomes = (job.quality,) if job.quality else ()
        actions: list[Action] = [Finish(job.cell, outcomes, status, error, job.attempt)]
        if job.stage == "quality":
            actions += self._baseline_failed(job.cell, status, error)
        return actions

    def _baseline_ready(self, baseline_id: str, result: QualityResult) -> None:
        self._baselines[baseline_id] = result
        for cell in self._waiting.pop(baseline_id, []):
            self._open -= 1
            self._queue(_Job(cell, "quality", baseline=result))

    def _baseline_failed(self, baseline: Cell, status: Status, error: str | None) -> list[Action]:
        if not baseline.is_baseline:
            return []
        no_result = _NoBaseline(status, f"ended {status}: {error}")
        self._baselines[baseline.cell_id] = no_result
        waiting = self._waiting.pop(baseline.cell_id, [])
        self._open -= len(waiting)
        return [_not_run(cell, no_result) for cell in waiting]

    # What comes next

    def _read_plan(self) -> list[Action]:
        actions: list[Action] = []
        while self._plan is not None and self._open < LOOKAHEAD:
            cell = next(self._plan, None)
            if cell is None:
                self._plan = None
            elif cell.cell_id in self._finished:
                if cell.is_baseline:
                    self._recall(cell)
            elif cell.execution is None:
                actions.append(Finish(cell, (), "unsupported", cell.reason, 0))
            else:
                actions += self._admit(cell)
        return actions

    def _recall(self, baseline: Cell) -> None:
        """A baseline whose row is written: its result is kept, unless it failed."""
        kept = self._kept.get(baseline.cell_id)
        if kept and kept[0].quality:
            self._baselines[baseline.cell_id] = kept[0].quality
        else:
            status = self._finished[baseline.cell_id]
            story = f"ended {status} in an earlier run; its own row says why"
            self._baselines[baseline.cell_id] = _NoBaseline(status, story)

    def _admit(self, cell: Cell) -> list[Action]:
        baseline = None if cell.is_baseline else self._baselines.get(cell.baseline_cell_id)
        if isinstance(baseline, _NoBaseline):
            return [_not_run(cell, baseline)]
        kept = self._kept.pop(cell.cell_id, None)
        if kept and (cell.is_baseline or baseline is not None):
            outcome, attempt = kept
            job = _Job(cell, "quality", attempt, baseline=baseline)
            return self._after_quality(cell, outcome, job)
        if cell.is_baseline or baseline is not None:
            self._queue(_Job(cell, "quality", baseline=baseline))
        else:
            self._waiting.setdefault(cell.baseline_cell_id, []).append(cell)
            self._open += 1
        return []

    def _queue(self, job: _Job) -> None:
        self._open += 1
        if job.alone:
            self._alone.append(job)
        else:
            self._shared.setdefault(_group(job.cell), deque()).append(job)

    def _assign(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, worker in self._workers.items():
            if worker.job is not None:
                continue
            job = self._pick(worker)
            if job is None:
                continue
            worker.job = job
            worker.group = _group(job.cell)
            worker.cores = self._free_cores(worker.node)[: job.cell.device.threads]
            worker.deadline = now + job.cell.timeout_s
            quality = job.quality.quality if job.quality else None
            task = Task(job.cell, job.stage, job.attempt, worker.cores, job.baseline, quality)
            actions.append(Start(name, task))
        return actions

    def _pick(self, worker: _Worker) -> _Job | None:
        company = [w for w in self._workers.values() if w.node == worker.node and w.job]
        if any(w.job and w.job.alone for w in company):
            return None
        if self._shared:
            free = len(self._free_cores(worker.node))
            held = {w.group for w in self._workers.values() if w is not worker}
            fitting = [
                group for group, jobs in self._shared.items() if jobs[0].cell.device.threads <= free
            ]
            if not fitting:
                return None
            best = max(fitting, key=lambda group: self._attraction(group, worker.group, held))
            job = self._shared[best].popleft()
            if not self._shared[best]:
                del self._shared[best]
            return job
        # Whatever still runs here may give more to run, and a latency stage wants silence.
        if company or not self._alone:
            return None
        for index, job in enumerate(self._alone):
            if worker.group == _group(job.cell):
                del self._alone[index]
                return job
        return self._alone.popleft()

    def _attraction(
        self, group: Group, loaded: Group | None, held: set[Group | None]
    ) -> tuple[bool, bool, bool, int]:
        """Prefer what this worker has loaded, then its framework, then what no other holds."""
        same_backend = loaded is not None and group[2] == loaded[2]
        return group == loaded, same_backend, group not in held, len(self._shared[group])

    def _free_cores(self, node: str) -> tuple[int, ...]:
        used = {core for w in self._workers.values() if w.node == node for core in w.cores}
        return tuple(core for core in self._node_cores[node] if core not in used)


def _group(cell: Cell) -> Group:
    return cell.model, cell.dataset, cell.backend


def _not_run(cell: Cell, baseline: _NoBaseline) -> Finish:
    # What a backend cannot take as float it does not support quantized either; that is no failure.
    status: Status = "unsupported" if baseline.status == "unsupported" else "failed"
    error = f"not run: its float baseline {cell.baseline_cell_id} {baseline.story}"
    return Finish(cell, (), status, error, 0)
