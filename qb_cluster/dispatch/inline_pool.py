"""One worker in this very process: for a debugger, for tiny machines, and without Ray.

A stage that hangs or crashes takes the process with it; what was committed before is kept.
"""

import os
from collections import deque

from qb_cluster.contracts import Task
from qb_cluster.dispatch.events import Event, TasksEnded, WorkerUp
from qb_cluster.nodes.cores import THREAD_VARIABLES, available_cores
from qb_cluster.nodes.environment import fingerprint
from qb_cluster.worker import Worker

NAME = "inline"


class InlinePool:
    """Runs each call when it is waited for.

    Args:
        artifacts: where artifacts are kept: a folder, or the URL of an object store.
        threads: the largest number of threads a cell asks for.
    """

    def __init__(self, artifacts: str, threads: int) -> None:
        for variable in THREAD_VARIABLES:
            os.environ[variable] = str(threads)
        self._worker = Worker(artifacts)
        self._calls: deque[tuple[Task, ...]] = deque()
        self._is_announced = False

    def start(self, worker: str, tasks: tuple[Task, ...]) -> None:
        """Remember the call until ``wait`` runs it."""
        del worker
        self._calls.append(tasks)

    def kill(self, worker: str) -> None:
        """Do nothing: by the time anybody asks, the stage has ended."""
        del worker

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Run the first call that was started."""
        del timeout_s
        if not self._is_announced:
            self._is_announced = True
            return [WorkerUp(NAME, NAME, available_cores(), fingerprint=fingerprint())]
        if not self._calls:
            return []
        return [TasksEnded(NAME, tuple(map(self._worker.run, self._calls.popleft())))]

    def close(self) -> None:
        """Forget what was not run."""
        self._calls.clear()
