"""Artifacts that cells of several devices share are prepared once. Pure."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Final

from qb_cluster.contracts import Outcome
from qb_cluster.dispatch.job import Job

MOST_REMEMBERED: Final = 4_096


class Preparations:
    """Lets one prepare stage run of those that would make the same, and the others wait for it.

    Args:
        put: queues a job.

    Attributes:
        waiting: how many jobs wait for that of another cell.
    """

    def __init__(self, put: Callable[[Job], None]) -> None:
        self._put = put
        self._running: dict[Hashable, list[Job]] = {}  # who waits for each that runs or is queued
        self._done: OrderedDict[Hashable, Outcome] = OrderedDict()  # the latest last
        self.waiting = 0

    def put(self, job: Job) -> None:
        """Queue a job, unless what it would prepare is there, or on its way."""
        if job.stage != "prepare":
            self._put(job)
            return
        key = _made_of(job)
        if key in self._done:
            self._put(job.then(self._done[key]))
        elif key in self._running:
            self._running[key].append(job)
            self.waiting += 1
        else:
            self._running[key] = []
            self._put(job)

    def ended(self, job: Job, outcome: Outcome | None) -> None:
        """Go on after a prepare stage, which ended ok; or badly, then ``None``.

        After one that ended badly the next that waited runs its own: what is wrong may be wrong
        with a worker.
        """
        key = _made_of(job)
        waited = self._running.pop(key)
        self.waiting -= len(waited)
        if outcome is not None:
            self._put(job.then(outcome))
            self._done[key] = _of_another(outcome)
            if len(self._done) > MOST_REMEMBERED:
                self._done.popitem(last=False)
        for other in waited:
            self.put(other)


def _made_of(job: Job) -> Hashable:
    """Name what decides a prepare stage's outcome; where the artifact runs does not."""
    cell, baseline = job.cell, job.baseline
    content = None
    if baseline is not None and baseline.content is not None:
        content = replace(baseline.content, runtime=None)
    return (
        *(cell.model, cell.dataset, cell.backend, cell.scheme, cell.bits, cell.execution),
        *(cell.calibration, replace(cell.measure, latency=None), cell.simulator),
        *(cell.device.host, content, baseline and baseline.artifact.digest),
    )


def _of_another(outcome: Outcome) -> Outcome:
    """Say that the artifact was ready."""
    names = list(dict.fromkeys([*(outcome.values.get("reused") or ()), "artifact"]))
    return replace(outcome, values=outcome.values | {"reused": names})
