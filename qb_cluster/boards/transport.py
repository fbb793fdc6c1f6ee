"""A process that speaks bytes: on this machine here, over SSH in ``ssh``."""

import asyncio
import contextlib
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from qb_cluster.errors import BoardError

_STDERR_LINES: Final = 20
_END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Attributes:
        status: its exit status; negative for the number of the signal that ended it; ``None``
            where the connection was lost first.
        signal: name of that signal, e.g. ``SIGSEGV``; empty without one.
        last_words: the last lines it wrote to stderr.
    """

    status: int | None
    signal: str = ""
    last_words: str = ""


class Process(Protocol):
    """A running process."""

    async def write(self, data: bytes) -> None:
        """Write all of it to the process's stdin.

        Raises:
            OSError: the process or the connection has ended.
        """

    async def read(self, size: int) -> bytes:
        """Read exactly so many bytes of stdout.

        Raises:
            EOFError: it ended first.
        """

    async def end(self) -> Ending:
        """Close its stdin, wait a little, end it where it does not, and tell how it ended."""


class LastLines:
    """The last lines of a stream that somebody must keep reading."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_STDERR_LINES)

    async def keep(self, lines: asyncio.StreamReader) -> None:
        """Read to the end."""
        while line := await lines.read(4096):
            self.add(line)

    def add(self, text: bytes) -> None:
        """Add a piece of text."""
        before = self._lines.pop() if self._lines else ""
        self._lines.extend((before + text.decode(errors="replace")).split("\n"))

    def __str__(self) -> str:
        """Give them without the empty ones around them."""
        return "\n".join(self._lines).strip()


class LocalProcess:
    """A process on this machine; see ``Process``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._last_words = LastLines()
        assert process.stderr is not None
        self._keeping = asyncio.create_task(self._last_words.keep(process.stderr))

    async def write(self, data: bytes) -> None:
        """See ``Process``."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def read(self, size: int) -> bytes:
        """See ``Process``."""
        assert self._process.stdout is not None
        return await self._process.stdout.readexactly(size)

    async def end(self) -> Ending:
        """See ``Process``."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        with contextlib.suppress(TimeoutError):  # a child of its own may hold stderr open
            await asyncio.wait_for(self._keeping, _END_S)
        status = self._process.returncode
        assert status is not None
        return Ending(status, signal_name(-status), str(self._last_words))


def signal_name(number: int) -> str:
    """Give a signal's name; empty where the number is none."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


async def start_local(command: list[str], python: Path) -> LocalProcess:
    """Start a command on this machine.

    Raises:
        BoardError: there is no such program.
    """
    # Our own packages must not be found where the agent's are meant.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver, which then ends the agent
        )
    except OSError as error:
        raise BoardError(
            f"{python} cannot be started ({error.strerror}); name an interpreter of this machine"
        ) from error
    return LocalProcess(process)
