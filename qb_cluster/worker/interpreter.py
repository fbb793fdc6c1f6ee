"""A worker in another Python of this machine, for backends whose packages cannot live in this one.

That Python has QuantBench too, so it prepares, runs and times; where it has a runtime alone, an
agent runs artifacts there (``site.Elsewhere``). Both ends are ours, and the pipe is private: tasks
and outcomes go over it as pickles.
"""

import os
import pickle
import select
import signal
import site
import struct
import subprocess
import sys
import threading
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from qb_cluster.contracts import Outcome, Task
from qb_cluster.errors import BoardCrashedError, BoardError, BoardLostError, UnsupportedError
from qb_cluster.nodes.code_version import code_version

_LENGTH: Final = struct.Struct(">Q")
_PROBE_S: Final = 60.0
_PARENT_MS: Final = 1000
# An older QuantBench cannot name its code.
_PROBE: Final = """
import qb_cluster.worker
try:
    from qb_cluster.nodes.code_version import code_version
except ImportError:
    code_version = lambda: qb_cluster.__version__
print()
print(code_version())
"""


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

    @property
    def has_quantbench(self) -> bool:
        """Whether QuantBench is there; ``run`` refuses one that is not ours.

        Raises:
            BoardLostError: that Python did not say so in time; it is asked again the next time.
        """
        return self._code is not None

    @cached_property
    def _code(self) -> str | None:
        """Name the code of QuantBench there; ``None`` without one that can be imported."""
        command = [str(self._python), "-c", _PROBE]
        try:
            done = subprocess.run(  # noqa: S603  the node's owner names it
                command, capture_output=True, timeout=_PROBE_S, env=_environment(), check=False
            )
        except subprocess.TimeoutExpired as error:
            raise BoardLostError(
                f"{self._python} did not say within {_PROBE_S:g} s whether it has QuantBench; see "
                "that it starts and this machine is not overloaded, then run the sweep again with "
                "--rerun failed, or name another in the environments of this node's file"
            ) from error
        except OSError:
            return None
        if done.returncode != 0:
            return None
        lines = done.stdout.decode(errors="replace").splitlines()
        return lines[-1] if lines else None  # others may print before

    def run(self, task: Task) -> Outcome:
        """Run a stage there.

        Raises:
            UnsupportedError: the QuantBench there is not this one.
            BoardError: it cannot be started.
            BoardLostError: it did not answer in time.
            BoardCrashedError: it died.
        """
        if self._code is not None and _program(self._code) != _program(code_version()):
            raise UnsupportedError(
                f"{self._python} has QuantBench {self._code}, and this is {code_version()}: rows "
                "of two programs cannot be compared; install the same QuantBench there"
            )
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


def _program(code: str) -> str:
    """Leave out of a code's name the Python that runs it: that one differs, and is meant to."""
    return code.partition(", Python")[0]


def _environment() -> dict[str, str]:
    """Let the other Python find what this one finds outside its own installation."""
    # Both may be reached through links, and not the same ones.
    own = {
        place
        for name in (sys.prefix, sys.base_prefix, site.getusersitepackages())
        for place in (Path(name).absolute(), Path(name).resolve())
    }
    paths = [
        path
        for path in map(os.path.abspath, sys.path)
        if not any(own & {place, *place.parents} for place in (Path(path), Path(path).resolve()))
    ]
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
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(parent: int) -> None:
    """End this process when its parent has ended: in the middle of a stage nobody reads the pipe.

    The pipe is looked at too, since a parent that ended before this began was never seen.
    """
    closed = select.poll()
    closed.register(0, 0)  # no events: it is reported once nobody can write to it any more
    while os.getppid() == parent and not closed.poll(_PARENT_MS):
        pass
    os._exit(1)
