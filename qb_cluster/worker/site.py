"""Where a worker runs artifacts: in this process, or by an agent elsewhere."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from qb_cluster.boards.board import Board, Timing
from qb_cluster.contracts import Arrays, Artifact, Backend, Executable, Latency, SshBoard
from qb_cluster.errors import BoardLostError, UnsupportedError
from qb_cluster.evaluation import latency
from qb_cluster.nodes import environment
from qb_cluster.nodes.cores import normal_niceness, pinned
from qb_cluster.nodes.load import Load
from qb_cluster.worker.stage import Loaded

ASK_AGAIN_S: Final = 2.0


class Site(Protocol):
    """A place that runs artifacts."""

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
    """This process."""

    def pinned(self, cores: Sequence[int]) -> Any:
        """Pin this process."""
        return pinned(cores)

    def describe(self, backend: Backend) -> dict[str, Any]:
        """Describe this machine and the libraries installed in this Python."""
        return environment.describe(backend.distributions)

    def fingerprint(self, backend: Backend) -> str:  # noqa: ARG002  the protocol's
        """Name this machine."""
        return environment.fingerprint()

    def runtime(self, backend: Backend) -> str | None:  # noqa: ARG002  the protocol's
        """Leave it to the libraries of the environment."""
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
        """Time two artifacts in this process, pinned and at normal niceness."""
        with pinned(cores) as is_pinned, normal_niceness() as niceness:
            one, other = (
                self.open(artifact, loaded, threads, cores) for artifact in (baseline, quantized)
            )
            began = time.perf_counter_ns()
            other(example)
            first_inference_ns = time.perf_counter_ns() - began
            before = Load.now()
            result = latency.measure(lambda: one(example), lambda: other(example), settings)
            foreign = Load.now().foreign_cores(before)
        return Timing(result, first_inference_ns, is_pinned, niceness, foreign)


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

    Args:
        where: a board, or an interpreter of this machine.
        owner: who holds a board; an interpreter is held by nobody.
    """

    def __init__(self, where: SshBoard | Path, owner: Owner) -> None:
        self._where = where
        self._owner = owner
        self._runtime = ""
        self._board: Board | None = None

    def pinned(self, cores: Sequence[int]) -> Any:  # noqa: ARG002  the agent pins itself
        """Leave this process as it is."""
        return _as_it_is()

    def describe(self, backend: Backend) -> dict[str, Any]:
        """Describe the board, and what runs artifacts on it."""
        facts = self.connect(backend).facts
        libraries = {
            "numpy": facts["numpy"],
            facts["runtime"]: facts["runtime_version"] or None,
            **{name: environment.version_of(name) for name in ("qb-cluster", *backend.distributions)
               if name not in {facts["runtime"], "numpy"}},
        }  # fmt: skip
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
        try:
            return self.connect(loaded.backend).open(artifact, threads, cores)
        except (UnsupportedError, ValueError):
            self.close()  # tflite-runtime is known to fall over some time after a failed load
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
        board = self.connect(loaded.backend)
        return board.time(baseline, quantized, example, settings, threads, cores)

    def connect(self, backend: Backend) -> Board:
        """Give the agent that has a backend's runtime; waits while others have the board.

        Raises:
            UnsupportedError: the backend has no runtime that can be shipped.
            BoardError, BoardLostError, BoardCrashedError: see ``boards.board``.
        """
        runtime: str | None = getattr(backend, "board_runtime", None)
        if runtime is None:
            raise UnsupportedError(
                f"{backend.name} has no runtime for boards and other Pythons; take its entry out "
                "of the node's file, or out of the device's backends"
            )
        while (holder := self.arrive(runtime)) is not None:
            del holder
            time.sleep(ASK_AGAIN_S)
        assert self._board is not None
        return self._board

    def arrive(self, runtime: str) -> str | None:
        """Start the agent and take the board, without waiting; gives who has it, or ``None``.

        Raises:
            BoardError, BoardLostError, BoardCrashedError: see ``boards.board``.
        """
        if self._board is not None and runtime == self._runtime:
            return None
        self.close()
        board = Board.connect(self._where, runtime, self._owner.run, self._owner.who)
        holder = board.lock() if isinstance(self._where, SshBoard) else None
        if holder is not None:
            board.close()
            return holder
        self._board, self._runtime = board, runtime
        return None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the agent says of its board; see ``Board.facts``.

        Raises:
            BoardLostError: it has not arrived.
        """
        if self._board is None:
            raise BoardLostError(f"board '{self._where}': nobody is connected to it")
        return self._board.facts

    def close(self) -> None:
        """End the agent; the next that is asked for starts another one."""
        if self._board is not None:
            self._board.close()
            self._board = None


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
