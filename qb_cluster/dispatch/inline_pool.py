"""All workers in this very process: for a debugger, for tiny machines, and without Ray.

A stage that hangs or crashes takes the process with it; what was committed before is kept. A board
has its own crashes, which do not.
"""

import os
import time
from collections import deque
from collections.abc import Mapping
from functools import partial

from qb_cluster.contracts import SshBoard, Task
from qb_cluster.dispatch.board_survey import waiting_for
from qb_cluster.dispatch.events import Cause, Event, TasksEnded, Waiting, WorkerLost, WorkerUp
from qb_cluster.dispatch.pool import ASK_AGAIN_S
from qb_cluster.errors import BoardCrashedError, BoardLostError, BoardUnreachableError
from qb_cluster.nodes.cores import THREAD_VARIABLES, usable_cores
from qb_cluster.nodes.environment import fingerprint, own_gpu
from qb_cluster.worker import Owner, Worker

NAME = "inline"
WITH_GPU = "inline with GPU"


class InlinePool:
    """Runs each call when it is waited for.

    Args:
        artifacts: where artifacts are kept: a folder, or the URL of an object store.
        threads: the largest number of threads a cell asks for.
        boards: boards to use, with the module that each starts with.
        owner: whose they are meanwhile.
        gpus: whether cells are for a GPU. Then this process sees the first one alone, else none.
        labels: what this machine is.

    Raises:
        NodeConfigError: the file of this machine's owner is wrong.
    """

    can_kill = False

    def __init__(
        self,
        artifacts: str,
        threads: int,
        boards: Mapping[SshBoard, str] | None = None,
        owner: Owner | None = None,
        *,
        gpus: bool = True,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        for variable in THREAD_VARIABLES:
            os.environ[variable] = str(threads)
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts, whom we ask about GPUs
        own = own_gpu() if gpus else None  # one, as a worker of its own has
        if not gpus or own is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = "" if own is None else own["uuid"]
        owner = owner or Owner("", "")
        self._labels = dict(labels or {})
        worker = Worker(artifacts)
        self._workers = {NAME: worker, WITH_GPU: worker}
        self._calls: deque[tuple[str, tuple[Task, ...]]] = deque()
        self._is_announced = False
        self._boards = dict(boards or {})
        self._with_board = partial(Worker, artifacts, owner=owner)
        self._absent = {board: self._with_board(board=board) for board in self._boards}
        self._names: dict[str, SshBoard] = {}
        self._started = 0

    def start(self, worker: str, tasks: tuple[Task, ...]) -> None:
        """Remember the call until ``wait`` runs it."""
        self._calls.append((worker, tasks))

    def kill(self, worker: str) -> None:
        """Do nothing: nobody asks, since ``can_kill`` is False."""
        del worker

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Run the first call that was started; bring boards up where there is none.

        Raises:
            BoardError: a board cannot be used as it is.
        """
        if not self._is_announced:
            self._is_announced = True
            return [*self._own(), *self._greet()]
        if self._calls:
            return self._run(*self._calls.popleft())
        events = self._greet()
        if not any(isinstance(event, WorkerUp) for event in events):
            time.sleep(ASK_AGAIN_S if timeout_s is None else min(ASK_AGAIN_S, timeout_s))
        return events

    def close(self) -> None:
        """Forget what was not run, and give boards back."""
        self._calls.clear()
        for worker in (*self._workers.values(), *self._absent.values()):
            worker.leave()

    def _run(self, name: str, tasks: tuple[Task, ...]) -> list[Event]:
        worker = self._workers[name]
        cause: Cause
        try:
            return [TasksEnded(name, tuple(map(worker.run, tasks)))]
        except BoardLostError as error:
            cause, message = "node_lost", str(error)
        except BoardCrashedError as error:
            cause, message = "crashed", str(error)
        worker.leave()
        self._calls = deque(call for call in self._calls if call[0] != name)  # lost with it
        if name in self._names:
            self._absent[self._names.pop(name)] = self._workers.pop(name)
            return [WorkerLost(name, cause, message)]
        # An interpreter of its own died here: this worker itself lives on.
        return [WorkerLost(name, cause, message), *(up for up in self._own() if up.worker == name)]

    def _own(self) -> list[WorkerUp]:
        """Give the worker that is here, and once more with the GPU, where there is one."""
        cores = usable_cores()
        ups = [WorkerUp(NAME, NAME, cores, self._labels, fingerprint())]
        if own_gpu() is not None:
            ups.append(WorkerUp(WITH_GPU, NAME, cores, self._labels, fingerprint(1), gpus=1))
        return ups

    def _greet(self) -> list[Event]:
        events: list[Event] = []
        for board, worker in list(self._absent.items()):
            try:
                arrival = worker.arrive(self._boards[board])
            except (BoardLostError, BoardCrashedError, BoardUnreachableError) as error:
                events.append(Waiting(f"{error}; trying again"))
                continue
            if arrival.holder is not None:
                events.append(waiting_for(board, arrival.holder))
                continue
            self._started += 1
            name = f"board-{self._started}"
            del self._absent[board]
            self._workers[name], self._names[name] = worker, board
            cores, hardware = arrival.cores, arrival.fingerprint
            events.append(WorkerUp(name, name, cores, fingerprint=hardware, board=board))
        return events
