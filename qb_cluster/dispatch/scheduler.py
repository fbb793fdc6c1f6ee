"""Who runs what next. Pure: events in, actions out; no clock, no I/O, no Ray.

A cell goes quality → latency (if it is timed); for a board without Ray any node prepares it
first. A quantized cell's first stage waits for its baseline's quality stage. Quality stages share
a node as far as its cores go; a latency stage, and the second try of a stage that ran out of
memory, has its node to itself, and waits until no quality stage is left for that node to run.

Short stages of one group go to a worker several to a call, and a second call is handed out
before the first is over, so that no worker waits for the driver. Whom a dead call had in hand
is unknown where there were several: each is tried again in a call of its own, uncounted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from qb_cluster.contracts import Cell, Device, FinishedCell, Outcome, SshBoard, fate
from qb_cluster.dispatch.admission import Admission, Past
from qb_cluster.dispatch.crew import CALLS_IN_HAND, Call, Node, Worker
from qb_cluster.dispatch.deadlines import Deadlines
from qb_cluster.dispatch.events import (
    Action,
    BoardGivenUp,
    Cause,
    Event,
    Finish,
    Keep,
    Kill,
    Notice,
    Start,
    Stop,
    TasksEnded,
    Waiting,
    WorkerLost,
    WorkerUp,
)
from qb_cluster.dispatch.job import Group, Job
from qb_cluster.dispatch.pace import Pace
from qb_cluster.dispatch.preparations import Preparations
from qb_cluster.dispatch.queue import Queue

LOOKAHEAD: Final = 4_096  # cells taken from the plan before they can run: bounds the memory
LOOKAHEAD_PER_WORKER: Final = 16  # more, where there are so many workers that they would starve


class Scheduler:
    """Decides for one run.

    Args:
        plan: cells to end, baselines before the cells that need them.
        past: what earlier runs left.
    """

    def __init__(self, plan: Iterable[Cell], past: Past | None = None) -> None:
        self._plan: Iterator[Cell] | None = iter(plan)
        self._queue = Queue()
        self._preparations = Preparations(self._queue.put)
        known = self._hardware, lambda device: len(self._serving(device))
        self._admission = Admission(past or Past(), self._preparations.put, *known)
        self._workers: dict[str, Worker] = {}
        self._eager: dict[str, Worker] = {}  # those that could take another call
        self._deadlines = Deadlines()
        self._nodes: dict[str, Node] = {}
        self._held: Counter[Group] = Counter()  # workers that have a group loaded
        self._pace = Pace()
        self._told: set[str] = set()  # what workers wait for
        self._given_up: dict[SshBoard, str] = {}
        self._is_stopping = False
        self._in_hand = 0  # jobs that workers have

    @property
    def is_done(self) -> bool:
        """Whether every cell of the plan has ended, or, after ``Stop``, every stage that ran."""
        if self._is_stopping:
            return not any(worker.calls for worker in self._workers.values())
        return self._plan is None and self._open == 0

    def next_deadline(self) -> float | None:
        """Give the time at which a ``Tick`` is due; ``None`` while nothing runs."""
        due = self._deadlines.next()
        return None if due is None else due[0]

    def forgo_deadlines(self) -> None:
        """Let every stage run as long as it takes: nobody can end one. Before anything starts."""
        self._deadlines.are_kept = False

    def stranded(self) -> dict[Device, int]:
        """Count the jobs that wait for a device that no node serves now."""
        return {
            device: count
            for device, count in (self._queue.devices() + self._admission.unknown()).items()
            if not self._serving(device)
        }

    def without_prospect(self) -> list[str]:
        """Say why nothing that is left can ever run: its boards are given up; none while it may."""
        boards = {device.ssh for device in self.stranded()}
        if self.next_deadline() is not None or not boards:
            return []
        reasons = [self._given_up.get(board, "") if board else "" for board in boards]
        return sorted(reasons) if all(reasons) else []

    def on(self, event: Event, now: float) -> list[Action]:
        """Take an event, give what has to be done about it, in order.

        Args:
            event: what happened.
            now: seconds on any steady clock.
        """
        actions: list[Action] = []
        match event:
            case WorkerUp():
                self._welcome(event)
            case WorkerLost():
                actions += self._lost(event)
            case TasksEnded():
                actions += self._ended(event, now)
            case Stop():
                self._is_stopping = True
            case Waiting(text, _) if text not in self._told:
                self._told.add(text)
                actions.append(Notice(text))
            case BoardGivenUp(board, reason):
                self._given_up[board] = reason
                actions.append(Notice(f"{reason}; it is not used any more in this run"))
        actions += self._expire(now)
        if not self._is_stopping:
            actions += self._read_plan()
            actions += self._assign(now)
        return actions

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken. For tests."""
        for name, node in self._nodes.items():
            mine = [worker for worker in self._workers.values() if worker.node is node]
            busy = [worker for worker in mine if worker.calls]
            used = [core for worker in busy for core in worker.calls[0].cores]
            assert sorted([*used, *node.free]) == sorted(node.cores), f"{name}: cores are lost"
            assert node.busy == len(busy), f"{name}: the count of busy workers is off"
            assert node.workers == len(mine), f"{name}: the count of workers is off"
            assert all((w.name in self._eager) == w.is_eager for w in mine), "who is eager is off"
            alone = [w for w in busy if any(job.alone for call in w.calls for job in call.jobs)]
            assert node.is_taken == bool(alone), f"{name}: whether it is taken is off"
            assert not alone or len(busy) == 1, f"{name}: a stage that runs alone has company"
            for worker in busy:
                assert len(worker.calls) <= CALLS_IN_HAND, f"{worker.name}: too many calls"
                assert len({call.cores for call in worker.calls}) == 1, "a worker's cores moved"
                jobs = [job for call in worker.calls for job in call.jobs]
                assert len(jobs) == 1 or all(job.is_patient for job in jobs), "not to be shared"
                assert all(worker.serves(job.device) for job in jobs), f"{name}: wrong node"
        in_hand = sum(len(c.jobs) for w in self._workers.values() for c in w.calls)
        assert self._in_hand == in_hand, "the count of jobs in hand is off"
        waiting = self._queue.devices().total()
        assert len(self._queue) == waiting, "the count of jobs that wait is off"

    # What happened

    def _welcome(self, up: WorkerUp) -> None:
        node = self._nodes.get(up.node)
        if node is None or not node.workers:
            node = Node(up.cores, up.labels, list(up.cores), board=up.board)
            self._nodes[up.node] = node
        node.workers += 1
        node.with_gpu += up.gpus
        node.fingerprints[up.gpus] = up.fingerprint
        worker = Worker(up.worker, node, up.gpus)
        self._workers[up.worker] = self._eager[up.worker] = worker
        self._admission.hardware_known()

    def _ended(self, event: TasksEnded, now: float) -> list[Action]:
        worker = self._workers.get(event.worker)
        if worker is None or not worker.calls:
            return []  # late word of a worker that was given up
        jobs = worker.calls[0].jobs
        named = [(outcome.cell_id, outcome.stage) for outcome in event.outcomes]
        if named != [(job.cell.cell_id, job.stage) for job in jobs]:
            return []
        self._free(worker, worker.calls.popleft())
        if worker.calls:
            self._deadlines.begin(worker, now)
        if worker.is_eager:
            self._eager[worker.name] = worker
        self._pace.learn(self._queue.group(jobs[0]), jobs, event.outcomes)
        actions: list[Action] = []
        for job, outcome in zip(jobs, event.outcomes, strict=True):
            actions += self._settle(job, outcome)
        return actions

    def _lost(self, event: WorkerLost) -> list[Action]:
        worker = self._workers.get(event.worker)
        if worker is None:
            return []
        first = self._dismiss(worker)
        if len(first) == 1 or event.cause == "node_lost":
            return [
                action
                for job in first
                for action in self._retry(job, event.cause, event.message, event.story)
            ]
        self._suspect(first)
        return []

    def _expire(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while (due := self._deadlines.next()) is not None and due[0] <= now:
            worker = due[1]
            actions.append(Kill(worker.name))
            first = self._dismiss(worker)
            if len(first) > 1:
                self._suspect(first)
                continue
            [job] = first
            if again := job.after("timeout", "it ran past its deadline and was killed"):
                self._queue.put(again)
            else:
                actions += self._give_up(job, job.timed_out())
        return actions

    def _dismiss(self, worker: Worker) -> tuple[Job, ...]:
        """Forget a worker; gives what it was running, and puts back what it had not begun."""
        del self._workers[worker.name]
        self._eager.pop(worker.name, None)
        worker.node.workers -= 1
        worker.node.with_gpu -= worker.gpus
        first: tuple[Job, ...] = ()
        while worker.calls:
            call = worker.calls.pop()  # the last one first: their order in the queue stays
            self._free(worker, call)
            first = call.jobs
            if worker.calls:
                self._put_back(call.jobs)
        self._hold(worker, None)
        return first

    def _suspect(self, jobs: Iterable[Job]) -> None:
        """One of these killed its worker, or never ended: each is tried again by itself."""
        self._put_back(tuple(replace(job, solo=True) for job in jobs))

    def _put_back(self, jobs: tuple[Job, ...]) -> None:
        for job in reversed(jobs):
            self._queue.put(job, first=True)

    def _retry(self, job: Job, cause: Cause, message: str, story: str) -> list[Action]:
        if again := job.after(cause, story or message):
            self._queue.put(again)
            return []
        return self._give_up(job, job.lost(cause, message, story))

    def _settle(self, job: Job, outcome: Outcome) -> list[Action]:
        """A stage came back with a verdict of its own."""
        cell = job.cell
        if outcome.status == "oom" and (again := job.after("oom", outcome.error or "")):
            self._queue.put(again)
            return []
        if job.stage in {"content", "runtime"}:
            content = outcome.content
            if job.content is not None and outcome.status == "ok":
                content = replace(job.content, runtime=outcome.values["runtime"])
            has = job.stage == "runtime"
            return self._admission.content_known(cell, content, outcome.error, has_runtime=has)
        if job.stage == "prepare" and outcome.status == "ok":
            self._preparations.ended(job, outcome)
            return []
        if job.stage == "latency" or outcome.status != "ok" or outcome.quality is None:
            outcomes = (job.quality, outcome) if job.quality else (outcome,)
            story = "\n".join(job.story) or None
            ended = FinishedCell(cell, outcomes, *fate(cell, outcomes), job.attempt, story)
            return self._give_up(job, ended)
        actions: list[Action] = []
        if cell.is_baseline or cell.is_timed:
            actions.append(Keep(outcome, job.attempt))
        # What is durable already, and may be large, need not wait in memory with it.
        known = replace(outcome, predictions=None) if cell.is_timed else outcome
        return actions + self._admission.quality_known(cell, known, job.attempt, job.baseline)

    def _give_up(self, job: Job, ended: FinishedCell) -> list[Action]:
        """A stage ended for good: well, badly, or never."""
        if job.stage in {"content", "runtime"}:
            return self._admission.content_known(job.cell, None, ended.error)
        if job.stage == "prepare":
            self._preparations.ended(job, None)
        actions: list[Action] = [Finish(ended)]
        if job.stage != "latency":
            actions += self._admission.baseline_failed(job.cell, ended.status, ended.error)
        return actions

    # What comes next

    def _read_plan(self) -> list[Action]:
        actions: list[Action] = []
        most = max(LOOKAHEAD, LOOKAHEAD_PER_WORKER * len(self._workers))
        while self._plan is not None and self._open < most:
            cell = next(self._plan, None)
            if cell is None:
                self._plan = None
            else:
                actions += self._admission.admit(cell)
        return actions

    def _assign(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if not self._queue:
            return actions
        for worker in list(self._eager.values()):
            while call := self._next_call(worker):
                worker.calls.append(call)
                if len(worker.calls) == 1:
                    worker.node.busy += 1
                    self._deadlines.begin(worker, now)
                self._in_hand += len(call.jobs)
                tasks = tuple(job.task(call.cores) for job in call.jobs)
                actions.append(Start(worker.name, tasks))
            if not worker.is_eager:
                del self._eager[worker.name]
            if not self._queue:
                break
        return actions

    def _next_call(self, worker: Worker) -> Call | None:
        if not worker.calls:
            return self._pick(worker)
        return self._pick_early(worker) if worker.is_eager else None

    def _pick(self, worker: Worker) -> Call | None:
        node = worker.node
        if node.is_taken:
            return None
        loaded, free = worker.group, len(node.free)
        if loaded and self._queue.length(loaded) and loaded.device.threads <= free:
            best, jobs = loaded, self._queue.take(loaded, self._size(loaded))
        elif groups := self._queue.shared_for(worker.serves):
            fitting = [group for group in groups if group.device.threads <= free]
            if not fitting:
                return None
            best = max(fitting, key=lambda group: self._attraction(group, loaded))
            jobs = self._queue.take(best, self._size(best))
        else:
            # Whatever still runs here may give more to run, and a latency stage wants silence.
            job = None if node.busy else self._queue.take_alone(worker.group, worker.serves)
            if job is None:
                return None
            node.is_taken = True
            best, jobs = self._queue.group(job), (job,)
        self._hold(worker, best)
        cores = tuple(node.free[: best.device.threads])
        del node.free[: best.device.threads]
        return Call(jobs, cores, self._pace.is_brief(best, jobs))

    def _pick_early(self, worker: Worker) -> Call | None:
        """Take what a worker will do next while it is busy: more of the same."""
        group = worker.group
        jobs = self._queue.take_patient(group, self._size(group)) if group else ()
        return Call(jobs, worker.calls[0].cores, is_brief=True) if jobs and group else None

    def _size(self, group: Group) -> int:
        return self._pace.size(group, len(self._queue), CALLS_IN_HAND * len(self._workers))

    def _attraction(self, group: Group, loaded: Group | None) -> tuple[bool, bool, int]:
        """Prefer the framework that a worker has loaded, then what no other holds."""
        same_backend = loaded is not None and group.backend == loaded.backend
        return same_backend, not self._held[group], self._queue.length(group)

    # Counts

    @property
    def _open(self) -> int:
        """Jobs that wait or run, and cells that wait for their baseline or an equal artifact."""
        elsewhere = self._admission.waiting + self._preparations.waiting
        return len(self._queue) + self._in_hand + elsewhere

    def _free(self, worker: Worker, call: Call) -> None:
        """Give back what a call had, unless its worker has another in hand."""
        self._in_hand -= len(call.jobs)
        node = worker.node
        if not worker.calls:
            node.busy -= 1
            node.free = sorted([*node.free, *call.cores])
            node.is_taken = False

    def _hold(self, worker: Worker, group: Group | None) -> None:
        if worker.group is not None:
            self._held[worker.group] -= 1
        if group is not None:
            self._held[group] += 1
        worker.group = group

    def _serving(self, device: Device) -> list[Node]:
        return [node for node in self._nodes.values() if node.serves(device)]

    def _hardware(self, device: Device) -> set[str]:
        found = {node.fingerprints.get(device.gpus, "") for node in self._serving(device)}
        return found - {""}
