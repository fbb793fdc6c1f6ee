"""When the calls that workers have begun must be over. Pure."""

import heapq
import itertools
import math
from typing import Final

from qb_cluster.dispatch.crew import Call, Worker

NEVER: Final = math.inf


class Deadlines:
    """A deadline for the call that is first in each worker's hand.

    Attributes:
        are_kept: whether a stage that runs on past its time is given up. There is no sense in it
            where nobody can end a stage: all are ``NEVER`` then.
    """

    def __init__(self) -> None:
        self.are_kept = True
        self._heap: list[tuple[float, int, Worker, Call]] = []  # those of calls that are over too
        self._count = itertools.count()

    def begin(self, worker: Worker, now: float) -> None:
        """Give the call that a worker begins now as long as the most hurried of its cells has."""
        call = worker.calls[0]
        at = now + min(job.cell.timeout_s for job in call.jobs) if self.are_kept else NEVER
        heapq.heappush(self._heap, (at, next(self._count), worker, call))

    def next(self) -> tuple[float, Worker] | None:
        """Give the first deadline, and whose it is; ``None`` while nothing runs."""
        while self._heap:
            at, _, worker, call = self._heap[0]
            if worker.calls and worker.calls[0] is call:
                return at, worker
            heapq.heappop(self._heap)
        return None
