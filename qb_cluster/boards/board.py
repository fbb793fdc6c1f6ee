"""The driver's side of a board: a synchronous client of its agent."""

import asyncio
import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from qb_cluster.boards.agent.arrays import pack_arrays, unpack_arrays
from qb_cluster.boards.agent.main import ENDED
from qb_cluster.boards.agent.wire import LENGTH, PREAMBLE, encode, header_bytes, split
from qb_cluster.boards.bundle import make_bundle, start_command
from qb_cluster.boards.ssh import start_ssh
from qb_cluster.boards.transport import Ending, Process, start_local
from qb_cluster.contracts import Arrays, Artifact, Executable, Latency, SampleBlock, SshBoard
from qb_cluster.errors import (
    BoardCrashedError,
    BoardError,
    BoardLostError,
    CellError,
    OutOfMemoryError,
    UnsupportedError,
)
from qb_cluster.evaluation.latency import LatencyResult

PING_S: Final = 5.0
SILENCE_S: Final = 30.0
_HELLO_S: Final = 120.0  # the first import of a runtime from an SD card
_MOST_CHATTER: Final = 64 << 10

_T = TypeVar("_T")
_Reply = tuple[dict[str, Any], list[bytes]]


@dataclass(frozen=True, slots=True)
class Timing:
    """What the latency protocol gave on a board.

    Attributes:
        result: the samples, as ``latency.measure`` gives them.
        first_inference_ns: the quantized artifact's first run after it was opened.
        outputs: what each arm gives for the example after it was timed, float and then quantized:
            the model's first output, one example along axis 0.
        is_pinned: whether both ran on the cores that were asked for; no cores: False.
        niceness: of what ran them.
        foreign_cores: cores that others kept busy meanwhile; ``None`` where unknown.
        is_device_timed: whether an accelerator's own clock told the time, without transfers.
        flags: what else was unfair, as ``latency_flags`` names it.
    """

    result: LatencyResult
    first_inference_ns: int
    outputs: tuple[NDArray[np.float32], NDArray[np.float32]]
    is_pinned: bool
    niceness: int
    foreign_cores: float | None
    is_device_timed: bool = False
    flags: tuple[str, ...] = ()


def first_output(executable: Executable, example: Arrays) -> NDArray[np.float32]:
    """Run an example and give the model's first output, a copy that no later run overwrites."""
    return np.array(next(iter(executable(example).values())))


class BoardExecutable:
    """An artifact that is open on a board; closed there once nobody holds this any more."""

    def __init__(self, ask: Callable[..., _Reply], handle: int) -> None:
        self._ask = ask
        self.handle = handle

    def __call__(self, inputs: Arrays, /) -> Mapping[str, NDArray[np.float32]]:
        """Run a batch; see ``contracts.Executable``.

        Raises:
            ValueError: the inputs do not fit.
            OutOfMemoryError: the board's memory does not do.
            BoardLostError: the connection was lost; nothing of this batch is known.
            BoardCrashedError: the runtime brought the agent down.
        """
        described, payloads = pack_arrays(inputs)
        answer, results = self._ask("run", payloads, handle=self.handle, arrays=described)
        return unpack_arrays(answer["arrays"], results)


class Board:
    """A connection to one agent. One thread at a time; ``connect`` makes it.

    Attributes:
        name: for messages.
        facts: ``machine`` (see ``nodes.machine``), ``python``, ``numpy``, ``runtime``,
            ``runtime_version``, ``free_memory_bytes``, ``free_disk_bytes`` and the agent's ``pid``.
    """

    def __init__(self, name: str, owner: str, who: str) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        self._owner = owner
        self._who = who
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._process: Process | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._is_lost = False  # no further request makes sense
        self._has_ended = False  # the process was waited for
        self._dropped: list[int] = []

    @classmethod
    def connect(cls, where: SshBoard | Path, runtime: str, owner: str, who: str) -> "Board":
        """Start an agent and ask what the board is.

        Args:
            where: a board, or an interpreter of this machine.
            runtime: the backend's module for boards; see ``bundle.make_bundle``.
            owner: the run. A lock that an earlier agent of the same owner still holds is taken.
            who: what others are told who wait for the board, e.g. ``ann on desk, sweep digits``.

        Raises:
            BoardError: it cannot be used; the message says why and what to do.
            BoardLostError: the connection was lost at once.
            BoardCrashedError: the runtime brought the agent down.
        """
        named = f"board '{where.host}'" if isinstance(where, SshBoard) else f"interpreter '{where}'"
        board = cls(named, owner, who)
        try:
            board._call(board._start(where, make_bundle(runtime)))
            board.facts, _ = board._ask("hello")
        except BaseException:
            board.close()
            raise
        return board

    def lock(self) -> str | None:
        """Take the board for ourselves, without waiting.

        Returns:
            ``None`` when it is ours; else who has it and since when: ask again later.
        """
        since = datetime.now(UTC).isoformat(timespec="seconds")
        answer, _ = self._ask("lock", owner=self._owner, who=self._who, since=since)
        if (busy := answer.get("busy")) is None:
            return None
        # A lock that was just taken, or is in a file that its holder cannot write, names nobody.
        return f"{busy['who'] or 'somebody'} since {busy['since']}" if busy["since"] else "somebody"

    def open(self, artifact: Artifact, threads: int, cores: Sequence[int] = ()) -> BoardExecutable:
        """Make an artifact ready to run there; its bytes travel once per connection.

        Raises:
            ValueError: it is no whole file of its format.
            UnsupportedError: the runtime there lacks kernels for it.
            OutOfMemoryError: it is larger than the memory that is free.
            CellError: the board's disk has no room for it.
            BoardLostError: the connection was lost.
            BoardCrashedError: the runtime brought the agent down.
        """
        digest = hashlib.blake2b(artifact.data, digest_size=16).hexdigest()
        answer, _ = self._ask("has", digest=digest, size=len(artifact.data))
        if not answer["has"]:
            self._ask("put", [artifact.data], digest=digest)
        answer, _ = self._ask("open", digest=digest, threads=threads, cores=list(cores))
        executable = BoardExecutable(self._ask, answer["handle"])
        weakref.finalize(executable, self._dropped.append, answer["handle"])
        return executable

    def time(
        self,
        baseline: Artifact,
        quantized: Artifact,
        example: Arrays,
        settings: Latency,
        threads: int,
        cores: Sequence[int] = (),
    ) -> Timing:
        """Time two artifacts against each other, on the board and by its clock.

        Raises what ``open`` and running raise.
        """
        first, second = (self.open(which, threads, cores) for which in (baseline, quantized))
        described, payloads = pack_arrays(example)
        answer, samples = self._ask(
            "time",
            payloads,
            baseline=first.handle,
            quantized=second.handle,
            arrays=described,
            settings=asdict(settings),
        )
        blocks = tuple(
            SampleBlock(block, position, arm, np.frombuffer(data, "<i8").astype(np.int64))
            for (block, position, arm), data in zip(answer["blocks"], samples, strict=True)
        )
        return Timing(
            LatencyResult(blocks, answer["capped"]),
            answer["first_inference_ns"],
            (first_output(first, example), first_output(second, example)),
            answer["is_pinned"],
            answer["niceness"],
            answer["foreign_cores"],
        )

    def close(self) -> None:
        """End the agent, which takes its folder and the lock with it. May be called twice."""
        if self._loop.is_closed():
            return
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _ask(self, do: str, payloads: Sequence[bytes] = (), **request: Any) -> _Reply:
        while self._dropped:
            self._exchange({"do": "close", "handle": self._dropped.pop()}, [])
        answer, results = self._exchange({"do": do, **request}, payloads)
        if "error" in answer:
            self._refuse(answer)
        return answer, results

    def _exchange(self, header: dict[str, Any], payloads: Sequence[bytes]) -> _Reply:
        if self._is_lost or self._loop.is_closed():
            raise BoardLostError(f"{self.name}: the connection has ended; connect again")
        try:
            return self._call(self._exchange_frames(encode(header, payloads), header["do"]))
        except (KeyboardInterrupt, SystemExit):
            self._is_lost = True  # the answer that is still to come would be taken for the next
            raise

    async def _exchange_frames(self, frame: bytes, do: str) -> _Reply:
        assert self._process is not None
        try:
            await self._process.write(frame)
            return await asyncio.wait_for(self._read(), _HELLO_S if do == "hello" else None)
        except (EOFError, OSError, ValueError) as error:
            self._explain(await self._end(self._process), do, error)

    async def _read(self) -> _Reply:
        assert self._process is not None
        header = await self._process.read(header_bytes(await self._process.read(LENGTH.size)))
        answer: dict[str, Any] = json.loads(header)
        sizes = answer["sizes"]
        return answer, split(await self._process.read(sum(sizes)), sizes)

    async def _start(self, where: SshBoard | Path, bundle: bytes) -> None:
        if isinstance(where, SshBoard):
            command = start_command(where.python, len(bundle), where.folder, SILENCE_S)
            self._process = await start_ssh(command, where)
        else:
            command = start_command(str(where), len(bundle), "", SILENCE_S)
            self._process = await start_local(command, where)
        try:
            await self._process.write(bundle)
            await asyncio.wait_for(self._skip_chatter(), _HELLO_S)
        except (EOFError, OSError, ValueError) as error:
            python = where.python if isinstance(where, SshBoard) else str(where)
            self._explain_start(await self._end(self._process), python, error)
        self._pinging = asyncio.create_task(self._ping())

    async def _skip_chatter(self) -> None:
        """Read up to the preamble: login shells print what they like before it."""
        assert self._process is not None
        seen = b""
        while not seen.endswith(PREAMBLE):
            seen += await self._process.read(1)
            if len(seen) > _MOST_CHATTER:
                raise ValueError("it prints without end; keep its login files quiet")

    async def _ping(self) -> None:
        assert self._process is not None
        while True:
            await asyncio.sleep(PING_S)
            try:
                await self._process.write(encode({"do": "ping"}))
            except OSError:  # whoever waits for an answer is told
                return

    async def _stop(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
        if self._process is not None and not self._has_ended:
            await self._end(self._process)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _end(self, process: Process) -> Ending:
        self._is_lost = self._has_ended = True
        return await process.end()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _explain_start(self, ending: Ending, python: str, error: Exception) -> NoReturn:
        """Say why no agent came up."""
        words = ending.last_words
        if isinstance(error, ValueError):  # it speaks, but not as the agent does
            raise BoardError(f"{self.name}: {error}")
        if isinstance(error, TimeoutError):
            raise BoardLostError(f"{self.name}: no agent started within {_HELLO_S:g} s")
        if ending.status is None:
            raise BoardLostError(
                f"{self.name}: the connection was lost while the agent started ({error})"
            ) from error
        if ending.signal or ending.status == ENDED:
            hint = "; perhaps its memory was not enough" if ending.signal == "SIGKILL" else ""
            raise BoardLostError(
                f"{self.name}: '{python}' was ended by {ending.signal or 'somebody'} "
                f"while the agent started{hint}. Its last words: {words or 'none'}"
            ) from error
        if "quantbench: " in words:
            raise BoardError(f"{self.name}: {words.rpartition('quantbench: ')[2]}")
        if ending.status in {126, 127}:
            raise BoardError(
                f"{self.name} has no '{python}' that can be run ({words}); name another Python"
            )
        raise BoardError(
            f"{self.name}: '{python}' does not start the agent: it ended with "
            f"status {ending.status} and wrote {words or 'nothing'}; is it a Python ≥ 3.8? "
            "Name another one"
        )

    def _explain(self, ending: Ending, do: str, error: Exception) -> NoReturn:
        """Say why there was no answer."""
        words = ending.last_words
        if isinstance(error, TimeoutError):
            raise BoardLostError(f"{self.name}: no answer to '{do}' in {_HELLO_S:g} s")
        if ending.status is None:
            raise BoardLostError(
                f"{self.name}: the connection was lost in the middle of '{do}': the "
                "network, or the board went down or rebooted"
            ) from error
        if ending.status in {0, ENDED}:
            raise BoardLostError(
                f"{self.name}: the agent ended in the middle of '{do}': "
                f"{words.rpartition('quantbench: ')[2] or 'its input was closed'}"
            ) from error
        hint = "; perhaps its memory was not enough" if ending.signal == "SIGKILL" else ""
        raise BoardCrashedError(
            f"{self.name}: the agent died in the middle of '{do}' by "
            f"{ending.signal or f'status {ending.status}'}{hint}. Its last words: "
            f"{words or 'none'}"
        ) from error

    def _refuse(self, answer: dict[str, Any]) -> NoReturn:
        """Raise what the agent's typed error stands for."""
        kind, message = answer["error"], f"{self.name}: {answer['message']}"
        error = _ERRORS.get(kind, CellError)(message)
        if "traceback" in answer:
            error.add_note(f"On the board:\n{answer['traceback']}")
        raise error


_ERRORS: Final[dict[str, type[Exception]]] = {
    "damaged": BoardLostError,
    "invalid": ValueError,
    "no_memory": OutOfMemoryError,
    "no_space": CellError,
    "setup": BoardError,
    "unsupported": UnsupportedError,
}
