"""The process around a worker. What it prints goes to a file; calls come and go as bytes.

Knows nothing of Ray.
"""

import faulthandler
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qb_cluster.contracts import Outcome, Task
from qb_cluster.dispatch.last_words import crash_file
from qb_cluster.dispatch.packing import pack, unpack
from qb_cluster.dispatch.pool import ASK_AGAIN_S

_MOST_LOG_BYTES = 4_000_000


class Runner(Protocol):
    """What runs stages, e.g. ``qb_cluster.worker.Worker``."""

    def run(self, task: Task) -> Outcome:
        """Run a stage. Raises only of a board that was lost or crashed."""


MakeRunner = Callable[[str], Runner]
"""Makes a runner, given the place of the artifacts. Found by its import path in the worker."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says of itself when it is ready.

    Attributes:
        host, cores, fingerprint: of the machine that runs artifacts: a board, or its own.
        code: which code of ours it runs, see ``nodes.code_version``.
        waits_for: who has its board: it is not ready yet, and to be asked again.
    """

    host: str
    pid: int
    cores: tuple[int, ...]
    fingerprint: str
    log: Path
    code: str
    waits_for: str | None = None


class WorkerProcess:
    """Takes over this process.

    Args:
        make_runner: a packed ``MakeRunner``.
        artifacts: what it is called with.
        log: where to what is printed here, by Python or by native code.
        import_paths: folders that plug-ins are looked up in.
        runtime: of a worker with a board, the module for boards that it starts with.
        gpus: 1 when it has a GPU to itself.
    """

    def __init__(
        self,
        make_runner: bytes,
        artifacts: str,
        log: str,
        import_paths: Iterable[str],
        runtime: str = "",
        gpus: int = 0,
    ) -> None:
        self._log = _writable(Path(log))
        _print_to(self._log)
        # What Python was doing when native code crashes goes to a file, since nothing that
        # runs afterwards can be asked.
        self._crash_file = crash_file(self._log).open("w", encoding="utf-8")
        faulthandler.enable(file=self._crash_file)
        sys.path[:0] = [path for path in import_paths if path not in sys.path]
        (make,) = unpack(make_runner)
        self._runner: Any = make(artifacts)
        self._runtime = runtime
        self._gpus = gpus

    def hello(self) -> Hello:
        """Say who and where this is; takes the board first, where there is one.

        Raises:
            BoardError, BoardLostError, BoardCrashedError: see ``boards.board``.
        """
        from qb_cluster.nodes.code_version import code_version
        from qb_cluster.nodes.cores import available_cores
        from qb_cluster.nodes.environment import fingerprint

        pid, code = os.getpid(), code_version()
        if not self._runtime:
            own = platform.node(), pid, available_cores(), fingerprint(self._gpus)
            return Hello(*own, self._log, code)
        board = self._runner.arrive(self._runtime)
        if board.holder is not None:
            time.sleep(ASK_AGAIN_S)  # whoever asked asks again at once
        of_board = board.host, pid, board.cores, board.fingerprint
        return Hello(*of_board, self._log, code, board.holder)

    def run(self, tasks: bytes) -> bytes:
        """Run the stages of a call, one after the other."""
        if os.fstat(1).st_size > _MOST_LOG_BYTES:
            os.ftruncate(1, 0)
        return pack([self._runner.run(task) for task in unpack(tasks)])

    def tidy(self) -> None:
        """Give back what a worker that ends well has taken, and remove its files."""
        if (leave := getattr(self._runner, "leave", None)) is not None:
            leave()
        self._log.unlink(missing_ok=True)
        crash_file(self._log).unlink(missing_ok=True)


def _writable(log: Path) -> Path:
    """Give the log's path, or one in the folder for temporary files where it cannot be."""
    for path in (log, Path(tempfile.gettempdir(), "quantbench-logs", log.name)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            continue
        return path
    return Path(os.devnull)


def _print_to(log: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
