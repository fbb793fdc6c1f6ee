"""Where a worker runs artifacts: in this process, or by an agent elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qb_cluster.boards.board import Board, Timing, first_output
from qb_cluster.contracts import (
    Arrays,
    Artifact,
    Backend,
    Cell,
    Executable,
    Latency,
    SshBoard,
    Task,
)
from qb_cluster.errors import BoardError, BoardLostError, CellError, UnsupportedError
from qb_cluster.evaluation import latency
from qb_cluster.nodes import environment
from qb_cluster.nodes.accelerators import foreign_processes
from qb_cluster.nodes.cores import normal_niceness, pinned
from qb_cluster.nodes.load import Load
from qb_cluster.worker.stage import Loaded


class Site(Protocol):
    """A place that runs artifacts."""

    @property
    def accelerator(self) -> str | None:
        """Name the GPU that computes; ``None`` for the CPU."""

    def pinned(self, cores: Sequence[int]) -> Any:
        """Give a context in which this process stays on ``cores``, if they are here."""

    def describe(self, backend: Backend) -> dict[str, Any]:
        """Describe machine and libraries; see ``nodes.environment.describe``."""

    def fingerprint(self, backend: Backend) -> str:
        """Name the hardware that timings depend on; see ``nodes.environment.fingerprint``."""

    def runtime(self, backend: Backend) -> str | None:
        """Name the runtime and its version; ``None`` where ``describe`` says as much."""

    def open(
        self, artifact: Artifact, loaded: Loaded, threads: int, cores: Sequence[int]
    ) -> Executable:
        """Make an artifact ready to run. Raises as ``Backend.open`` does."""

    def time(
        self,
        baseline: Artifact,
        quantized: Artifact,
        example: Arrays,
        settings: Latency,
        loaded: Loaded,
        threads: int,
        cores: Sequence[int],
    ) -> Timing:
        """Time two artifacts, interleaved, on the device and by its clock."""


class Here:
    """This process.

    Args:
        gpus: 1 for the GPU that it sees.
    """

    def __init__(self, gpus: int = 0) -> None:
        self._gpus = gpus

    @property
    def accelerator(self) -> str | None:
        """Name the GPU."""
        gpu = environment.own_gpu() if self._gpus else None
        return None if gpu is None else str(gpu["name"])

    def pinned(self, cores: Sequence[int]) -> Any:
        """Pin this process."""
        return pinned(cores)

    def describe(self, backend: Backend) -> dict[str, Any]:
        """Describe this machine and the libraries installed in this Python."""
        found = environment.describe(backend.distributions)
        return found | {"gpu": environment.own_gpu()} if self._gpus else found

    def fingerprint(self, backend: Backend) -> str:  # noqa: ARG002  the protocol's
        """Name this machine."""
        return environment.fingerprint(self._gpus)

    def runtime(self, backend: Backend) -> str | None:  # noqa: ARG002  the protocol's
        """Leave it to the backend's digest, which counts what is installed in this Python."""
        return None

    def open(
        self,
        artifact: Artifact,
        loaded: Loaded,
        threads: int,
        cores: Sequence[int],  # noqa: ARG002  this process is pinned already
    ) -> Executable:
        """Open an artifact in this process."""
        return loaded.backend.open(artifact, loaded.model, threads)

    def time(
        self,
        baseline: Artifact,
        quantized: Artifact,
        example: Arrays,
        settings: Latency,
        loaded: Loaded,
        threads: int,
        cores: Sequence[int],
    ) -> Timing:
        """Time two artifacts in this process, pinned and at normal niceness.

        By their own stopwatches where both have one: see ``contracts.Backend``. The first
        inference is always timed by this process's clock, transfers and all.
        """
        with pinned(cores) as is_pinned, normal_niceness() as niceness:
            one, other = (
                self.open(artifact, loaded, threads, cores) for artifact in (baseline, quantized)
            )
            began = time.perf_counter_ns()
            other(example)
            first_inference_ns = time.perf_counter_ns() - began
            before = Load.now()
            watches = _stopwatches(example, one, other)
            is_shared = watches is not None and _is_gpu_shared()
            runs: Sequence[Callable[[], object]] = watches or (
                lambda: one(example),
                lambda: other(example),
            )
            result = latency.measure(runs[0], runs[1], settings, self_timed=watches is not None)
            foreign = Load.now().foreign_cores(before)
            is_shared |= watches is not None and _is_gpu_shared()
            outputs = first_output(one, example), first_output(other, example)
        return Timing(
            result,
            first_inference_ns,
            outputs,
            is_pinned,
            niceness,
            foreign,
            is_device_timed=watches is not None,
            flags=("foreign_gpu_process",) if is_shared else (),
        )


def runtime_of(cell: Cell, backend: Backend, site: Site) -> str | None:
    """Name what runs a cell's artifact, and its version, where that is apart from what made it.

    On a node with a runtime alone it is all of the backend that is installed there.

    Raises what ``Site.runtime`` does.
    """
    named = site.runtime(backend)
    if named is not None or cell.device.prepares:
        return named
    versions = {name: environment.version_of(name) for name in backend.distributions}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def refuse_other_runtime(task: Task, runtime: str | None) -> None:
    """See that a native cell runs on what its float baseline ran on.

    Raises:
        CellError: it does not.
    """
    cell, before = task.cell, None if task.baseline is None else task.baseline.content
    # Journals of before this was noted have none for boards.
    is_known = before is not None and (before.runtime is not None or cell.device.prepares)
    if before is None or not is_known or cell.execution != "native" or before.runtime == runtime:
        return
    here, there = (name or "the node's own libraries" for name in (runtime, before.runtime))
    raise CellError(
        f"device '{cell.device.name}' runs this on {here}, and ran the float baseline on {there}: "
        "what differs would not be the quantization's alone; give unlike nodes devices of their "
        "own, or, after an upgrade, run the sweep again with --rerun failed"
    )


def _stopwatches(example: Arrays, *executables: Executable) -> tuple[Callable[[], int], ...] | None:
    """Give functions that run once and give their nanoseconds; ``None`` if any has none."""
    makers = [getattr(executable, "stopwatch", None) for executable in executables]
    if any(make is None for make in makers):
        return None
    return tuple(make(example) for make in makers if make is not None)


def _is_gpu_shared() -> bool:
    """Tell whether another process uses the GPU that this one sees and computes on.

    This process is one of those that the driver lists, but in a container by an id that it does
    not know itself by: so they are counted.
    """
    gpu = environment.own_gpu()
    return gpu is not None and len(foreign_processes(gpu["uuid"], own_pids=())) > 1


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose board it is while it is used.

    Attributes:
        run: the same for all who may take it over from each other.
        who: for others to read, e.g. ``ann on desk, sweep digits``.
    """

    run: str
    who: str


class Elsewhere:
    """An agent, started when it is first needed, and again when another runtime is.

    Attributes:
        accelerator: none: its runtimes compute on the CPU.

    Args:
        where: a board, or an interpreter of this machine.
        owner: who holds a board; an interpreter is held by nobody.
    """

    accelerator: str | None = None

    def __init__(self, where: SshBoard | Path, owner: Owner) -> None:
        self._where = where
        self._owner = owner
        self._runtime = ""
        self._board: Board | None = None
        self._is_spent = False  # the next artifact takes another agent
        self._asking: tuple[str, Board] | None = None  # runtime and agent, while others have it

    def pinned(self, cores: Sequence[int]) -> Any:  # noqa: ARG002  the agent pins itself
        """Leave this process as it is."""
        return _as_it_is()

    def describe(self, backend: Backend) -> dict[str, Any]:
        """Describe the board, or this machine, and the libraries that have to do with artifacts.

        Another Python of this machine runs what was made in this one; a board, what was made
        somewhere else.
        """
        facts = self.connect(backend).facts
        of_this_python = () if isinstance(self._where, SshBoard) else backend.distributions
        libraries = {
            **{name: environment.version_of(name) for name in ("qb-cluster", *of_this_python)},
            "numpy": facts["numpy"],
            facts["runtime"]: facts["runtime_version"] or None,
        }
        return {**facts["machine"], "python": facts["python"], "libraries": libraries}

    def fingerprint(self, backend: Backend) -> str:
        """Name the board's hardware."""
        return environment.fingerprint_of(self.connect(backend).facts["machine"])

    def runtime(self, backend: Backend) -> str | None:
        """Name what runs artifacts there."""
        facts = self.connect(backend).facts
        return f"{facts['runtime']} {facts['runtime_version']}".rstrip()

    def open(
        self, artifact: Artifact, loaded: Loaded, threads: int, cores: Sequence[int]
    ) -> Executable:
        """Open an artifact there.

        Raises:
            UnsupportedError: the runtime there cannot run it.
            BoardLostError, BoardCrashedError: see ``boards.board``.
        """
        board = self.connect(loaded.backend, fresh=self._is_spent)
        try:
            return board.open(artifact, threads, cores)
        except (UnsupportedError, ValueError):
            self._is_spent = True  # tflite-runtime is known to fall over some time after this
            raise

    def time(
        self,
        baseline: Artifact,
        quantized: Artifact,
        example: Arrays,
        settings: Latency,
        loaded: Loaded,
        threads: int,
        cores: Sequence[int],
    ) -> Timing:
        """Time two artifacts there."""
        board = self.connect(loaded.backend, fresh=self._is_spent)
        return board.time(baseline, quantized, example, settings, threads, cores)

    def connect(self, backend: Backend, *, fresh: bool = False) -> Board:
        """Give the agent that has a backend's runtime; where ``fresh``, another than before.

        Raises:
            UnsupportedError: the backend has no runtime that can be shipped.
            BoardLostError: or others have taken the board meanwhile.
            BoardError, BoardCrashedError: see ``boards.board``.
        """
        runtime: str | None = getattr(backend, "board_runtime", None)
        if runtime is None:
            raise UnsupportedError(
                f"{backend.name} has no runtime for boards and other Pythons; take it out of the "
                "device's backends, or install qb-cluster in the Python that the node's file names"
            )
        if (holder := self.arrive(runtime, fresh=fresh)) is not None:
            raise BoardLostError(f"board '{self._name}' was lost, and now {holder} has it")
        assert self._board is not None
        return self._board

    def arrive(self, runtime: str, *, fresh: bool = False) -> str | None:
        """Start the agent and take the board, without waiting; gives who has it, or ``None``.

        While others have it the agent stays there, for the next time that it is asked for.

        Raises:
            BoardError, BoardLostError, BoardCrashedError: see ``boards.board``.
        """
        if self._board is not None and runtime == self._runtime and not fresh:
            return None
        try:
            agent = self._ask(runtime)
            holder = agent.lock() if isinstance(self._where, SshBoard) else None
            if holder is not None and self._board is not None:  # it may be we: not all can tell
                self._board.close()
                self._board = None
                holder = agent.lock()
        except BaseException:
            self.close()
            raise
        if holder is not None:
            return holder
        if self._board is not None:  # not before, or others might take the board in between
            self._board.close()
        self._board, self._runtime, self._is_spent, self._asking = agent, runtime, False, None
        return None

    def _ask(self, runtime: str) -> Board:
        """Give an agent that has not taken the board: one that waits already, or a new one."""
        if self._asking is not None and self._asking[0] == runtime:
            return self._asking[1]
        try:
            agent = Board.connect(self._where, runtime, self._owner.run, self._owner.who)
        except BoardError as error:
            if isinstance(self._where, SshBoard):
                raise
            hint = "or install qb-cluster there, or name another in [environments] of node.toml"
            raise UnsupportedError(f"{error}; {hint}") from error
        if self._asking is not None:
            self._asking[1].close()
        self._asking = runtime, agent
        return agent

    @property
    def _name(self) -> str:
        return str(getattr(self._where, "host", self._where))

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the agent says of its board; see ``Board.facts``.

        Raises:
            BoardLostError: it has not arrived.
        """
        if self._board is None:
            raise BoardLostError(f"board '{self._name}': nobody is connected to it")
        return self._board.facts

    def close(self) -> None:
        """End the agent; the next that is asked for starts another one."""
        for agent in (self._board, self._asking and self._asking[1]):
            if agent is not None:
                agent.close()
        self._board = self._asking = None


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
