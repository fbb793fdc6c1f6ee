"""Workers as Ray actors. The only file that imports ray.

Actors run with ``max_restarts=0`` and ``max_task_retries=0``: only then does Ray say what really
ended one, and attempts stay the scheduler's to count. A deadline ends in ``ray.kill``, since Ray
cannot stop a running actor call in any other way.
"""

import faulthandler
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qb_cluster.contracts import Outcome, Task
from qb_cluster.dispatch.events import Cause, Event, TaskEnded, WorkerLost, WorkerUp
from qb_cluster.errors import PoolError
from qb_cluster.nodes.cores import THREAD_VARIABLES
from qb_cluster.worker import Worker

START_DEADLINE_S = 120.0
MOST_FAILED_STARTS = 3
# Read by Ray when it is imported or starts its processes.
_RAY_SETTINGS = {
    # Workers start at niceness 15 by default: any foreign process would push timing aside.
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class _Actor:
    """The process around a worker."""

    def __init__(self, artifacts: str, crash_log: str, import_paths: list[str]) -> None:
        sys.path[:0] = [path for path in import_paths if path not in sys.path]
        # What Python was doing when native code crashes goes to a file, since nothing that
        # runs afterwards can be asked.
        self._crash_log = Path(crash_log).open("w", encoding="utf-8")  # noqa: SIM115 - kept open
        faulthandler.enable(file=self._crash_log)
        self._worker = Worker(Path(artifacts))

    def hello(self) -> tuple[str, tuple[int, ...]]:
        import ray

        from qb_cluster.nodes.cores import available_cores

        return ray.get_runtime_context().get_node_id(), available_cores()

    def run(self, task: Task) -> Outcome:
        return self._worker.run(task)


class RayPool:
    """A Ray of our own on this machine, with one actor for each share of the cores.

    Args:
        artifacts: where artifacts are kept.
        logs: where workers leave their last words.
        threads: the smallest number of threads a cell asks for; cores ÷ threads workers start.
        cores: how many cores there are.
        import_paths: folders that workers look up plug-ins in, as the driver does.

    Raises:
        PoolError: Ray does not start.
    """

    def __init__(
        self,
        artifacts: Path,
        logs: Path,
        *,
        threads: int,
        cores: int,
        import_paths: Sequence[str],
    ) -> None:
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray: Any = ray
        self._arguments = (str(artifacts), list(import_paths))
        self._logs = logs
        self._threads = threads
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, str] = {}  # a pending call, and the worker it is at
        self._greeting: set[str] = set()  # workers that have not said hello yet
        self._started = 0
        self._failed_starts = 0
        logs.mkdir(parents=True, exist_ok=True)
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except Exception as error:
            raise PoolError(
                f"Ray does not start ({type(error).__name__}: {error}); `--pool inline` runs "
                "the sweep without it"
            ) from error
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own there, which just exits
        # Ray's own notices of dead workers are printed even with log_to_driver=False, and no
        # public setting stops them. Such a death is a typed row here, with a better message.
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001
        for _ in range(max(1, cores // threads)):
            self._spawn()

    def start(self, worker: str, task: Task) -> None:
        """Hand a stage to an idle worker."""
        self._calls[self._actors[worker].run.remote(task)] = worker

    def kill(self, worker: str) -> None:
        """End a worker, its children with it, and bring up another."""
        self._ray.kill(self._actors[worker])
        self._forget(worker)
        self._spawn()

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Wait for a worker that is ready, done or dead.

        Raises:
            PoolError: workers do not come up.
        """
        if not self._calls:
            return []
        limit = START_DEADLINE_S if self._greeting else None
        waits = [seconds for seconds in (timeout_s, limit) if seconds is not None]
        ready, _ = self._ray.wait(list(self._calls), timeout=min(waits, default=None))
        if not ready and self._greeting and (timeout_s is None or timeout_s > START_DEADLINE_S):
            raise PoolError(f"no worker came up within {START_DEADLINE_S:g} s; see {self._logs}")
        return [event for call in ready for event in self._heard(call)]

    def close(self) -> None:
        """End every worker, and the Ray that was started for them."""
        self._ray.shutdown()

    def _spawn(self) -> None:
        self._started += 1
        worker = f"worker-{self._started}"
        artifacts, import_paths = self._arguments
        environment = dict.fromkeys(THREAD_VARIABLES, str(self._threads))
        # Inductor compiles in a pool of processes of its own otherwise, beside what is timed.
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        # Zero GPUs asked for does not hide them by itself.
        environment["CUDA_VISIBLE_DEVICES"] = ""
        actor = (
            self._ray.remote(_Actor)
            .options(
                num_cpus=self._threads,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": environment},
            )
            .remote(artifacts, str(self._crash_log(worker)), import_paths)
        )
        self._actors[worker] = actor
        self._greeting.add(worker)
        self._calls[actor.hello.remote()] = worker

    def _heard(self, call: Any) -> list[Event]:
        worker = self._calls.pop(call)
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return self._died(worker, error)
        if isinstance(answer, Outcome):
            return [TaskEnded(worker, answer)]
        self._greeting.discard(worker)
        self._failed_starts = 0
        node, cores = answer
        return [WorkerUp(worker, node, cores)]

    def _died(self, worker: str, error: Exception) -> list[Event]:
        if worker in self._greeting:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise PoolError(f"workers do not come up: {error}") from error
        cause: Cause = "crashed"
        message = "the worker process died"
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            cause, message = "oom", "the node ran out of memory and Ray ended the worker"
        last_words = self._last_words(worker)
        if last_words:
            message += f": {last_words}"
        with suppress(Exception):  # it may live on when only the call failed
            self._ray.kill(self._actors[worker])
        self._forget(worker)
        self._spawn()
        return [WorkerLost(worker, cause, message)]

    def _forget(self, worker: str) -> None:
        del self._actors[worker]
        self._greeting.discard(worker)
        self._calls = {call: name for call, name in self._calls.items() if name != worker}

    def _crash_log(self, worker: str) -> Path:
        return self._logs / f"{worker}.{os.getpid()}.crash"

    def _last_words(self, worker: str) -> str:
        """Condense a fault handler's report: what happened, and the innermost frames."""
        try:
            report = self._crash_log(worker).read_text(encoding="utf-8")
        except OSError:
            return ""
        fatal, _, _ = report.partition("\n")
        _, _, crashing_thread = report.partition("Current thread")
        frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', crashing_thread)
        where = [f"{Path(file).name}:{line} in {name}" for file, line, name in frames[:2]]
        return f"{fatal} at {', called from '.join(where)}" if where else fatal
