"""Jobs that could run at once, and which of them a worker takes next."""

from collections import Counter, deque
from collections.abc import Callable

from qb_cluster.contracts import Device
from qb_cluster.dispatch.job import Group, Job


class Queue:
    """Jobs that wait for nothing but a worker.

    Jobs that share a node are kept by group, so that a worker goes on with what it has loaded;
    jobs that need a node to themselves in order.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, bool], Group] = {}  # by baseline, and whether on its device
        self._interned: dict[Group, Group] = {}
        self._shared: dict[Group, deque[Job]] = {}
        self._alone: deque[Job] = deque()
        self._size = 0

    def __len__(self) -> int:
        """Count the jobs."""
        return self._size

    def group(self, job: Job) -> Group:
        """Give the group of a job. Hashing one takes long, so it is done once a baseline."""
        cell, device = job.cell, job.device
        key = cell.baseline_cell_id, device is cell.device
        known = self._groups.get(key)
        if known is None:
            made = Group(cell.model, cell.dataset, cell.backend, device)
            known = self._interned.setdefault(made, made)
            self._groups[key] = known
        return known

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job at the end, or at the front of those it belongs to."""
        line = self._alone
        if not job.alone:
            line = self._shared.setdefault(self.group(job), deque())
        (line.appendleft if first else line.append)(job)
        self._size += 1

    def shared_for(self, serves: Callable[[Device], bool]) -> list[Group]:
        """List the groups whose jobs share a node, and that a node serves."""
        return [group for group in self._shared if serves(group.device)]

    def devices(self) -> Counter[Device]:
        """Count the jobs that wait, by device."""
        waiting: Counter[Device] = Counter()
        for group, jobs in self._shared.items():
            waiting[group.device] += len(jobs)
        waiting.update(job.device for job in self._alone)
        return waiting

    def length(self, group: Group) -> int:
        """Count the jobs of a group that share a node."""
        return len(self._shared.get(group, ()))

    def take(self, group: Group, most: int) -> tuple[Job, ...]:
        """Take jobs of a group for one call: the first one, and more like it.

        Args:
            group: one that has jobs.
            most: how many at most.
        """
        jobs = self._shared[group]
        taken = [jobs.popleft()]
        if taken[0].is_patient:
            while jobs and len(taken) < most and jobs[0].is_patient:
                taken.append(jobs.popleft())
        if not jobs:
            del self._shared[group]
        self._size -= len(taken)
        return tuple(taken)

    def take_patient(self, group: Group, most: int) -> tuple[Job, ...]:
        """Take jobs for a call that is handed out early; none if the next one is not patient."""
        jobs = self._shared.get(group)
        return self.take(group, most) if jobs and jobs[0].is_patient else ()

    def take_alone(self, loaded: Group | None, serves: Callable[[Device], bool]) -> Job | None:
        """Take a job that needs a node to itself, rather one of the group that is loaded."""
        fallback = None
        for index, job in enumerate(self._alone):
            if not serves(job.device):
                continue
            if self.group(job) is loaded:
                fallback = index
                break
            if fallback is None:
                fallback = index
        if fallback is None:
            return None
        job = self._alone[fallback]
        del self._alone[fallback]
        self._size -= 1
        return job
