"""A worker in another Python of this machine, for backends whose packages cannot live in this one.

That Python has QuantBench too, so it prepares, runs and times; where it has a runtime alone, an
agent runs artifacts there (``site.Elsewhere``). Both ends are ours, and the pipe is private: tasks
and outcomes go over it as pickles.
"""

import os
import pickle
import signal
import struct
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from qb_cluster.contracts import Outcome, Task
from qb_cluster.errors import BoardCrashedError, BoardError

_LENGTH: Final = struct.Struct(">Q")
_PROBE_S: Final = 60.0


class Interpreter:
    """A worker there; started when it is first needed, and again after it has died.

    Args:
        python: the interpreter.
        artifacts: the place of the artifacts.
    """

    def __init__(self, python: Path, artifacts: str) -> None:
        self._python = python
        self._artifacts = artifacts
        self._process: subprocess.Popen[bytes] | None = None

    @cached_property
    def has_quantbench(self) -> bool:
        """Whether it can hold a worker."""
        command = [str(self._python), "-c", "import qb_cluster.worker"]
        try:
            done = subprocess.run(  # noqa: S603  the node's owner names it
                command, capture_output=True, timeout=_PROBE_S, env=_environment(), check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def run(self, task: Task) -> Outcome:
        """Run a stage there.

        Raises:
            BoardError: it cannot be started.
            BoardCrashedError: it died.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin, task)
            outcome: Outcome = _read(process.stdout)
        except (OSError, EOFError) as error:
            status = process.wait()
            self._process = None
            by = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise BoardCrashedError(
                f"the worker in {self._python} died in the {task.stage} stage by {by}"
            ) from error
        return outcome

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        start = f"from {__name__} import main; main()"
        command = [str(self._python), "-c", start, self._artifacts]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(  # noqa: S603  the node's owner names it
                command, stdin=pipe, stdout=pipe, env=_environment()
            )
        except OSError as error:
            raise BoardError(
                f"{self._python} cannot be started ({error.strerror}); name another in the "
                "environments of this node's file"
            ) from error
        return self._process


def _environment() -> dict[str, str]:
    """Let the other Python find what this one finds outside its own installation."""
    own = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    paths = [path for path in map(os.path.abspath, sys.path) if not own & {*Path(path).parents}]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _write(pipe: BinaryIO | Any, value: Task | Outcome) -> None:
    data = pickle.dumps(value)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: BinaryIO | Any) -> Any:
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(header)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)  # noqa: S301  of our own child, or our own parent


def main() -> None:
    """Run tasks until there are no more."""
    from qb_cluster.worker.worker import Worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what it means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what plug-ins print is no answer
    worker = Worker(sys.argv[1], pythons={})
    while True:
        try:
            task = _read(sys.stdin.buffer)
        except EOFError:
            return
        _write(answers, worker.run(task))
