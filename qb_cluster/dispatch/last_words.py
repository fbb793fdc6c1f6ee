"""What a dead worker left behind: the fault handler's report, and the end of its output."""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MOST_LINES = 10
_MOST_BYTES = 16_384  # read from the end of a log
_MOST_CHARACTERS = 300  # of a line
# Ray's marks for its log monitor; and what it prints of a fatal signal: raw addresses, while the
# fault handler's report has the lines of Python.
_RAYS_OWN = re.compile(
    r":(actor_name|task_name|job_id):"
    r"|(\[.+\] \w+\.cc:\d+: )?(\*\*\* SIG\w+ received|PC: @| +@ +0x)"
)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a worker is, or was.

    Attributes:
        pid: ``None`` for a worker that never said hello.
        log: its log, as its own host calls it.
    """

    worker: str
    host: str
    node: str
    pid: int | None
    log: Path


def crash_file(log: Path) -> Path:
    """Name the file beside a log that the fault handler writes to."""
    return log.with_suffix(".crash")


def fault(log: Path) -> str:
    """Condense a fault handler's report: what happened, and the innermost frames.

    Returns:
        One line; empty where there is no report, or none that can be read from here.
    """
    try:
        report = crash_file(log).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fatal, _, _ = report.partition("\n")
    _, _, crashing_thread = report.partition("Current thread")
    frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', crashing_thread)
    where = [f"{Path(file).name}:{line} in {name}" for file, line, name in frames[:2]]
    return f"{fatal} at {', called from '.join(where)}" if where else fatal


def tell(where: Whereabouts, message: str) -> str:
    """Tell the story of a death: when, where, what, and the last lines of output.

    Args:
        where: where it was.
        message: what happened, one line.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    process = f", process {where.pid}" if where.pid is not None else ""
    place = f"host '{where.host}' (node {where.node[:12]}{process})"
    head = f"{now} UTC, {where.worker} on {place}: {message}"
    try:
        lines = _tail(where.log)
    except OSError:
        return f"{head}\nits log is on host '{where.host}': {where.log}"
    return "\n".join([head, *lines]) if lines else f"{head}\nit had printed nothing"


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _MOST_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip() for line in text.splitlines()]
    spoken = [line for line in lines if line and not _RAYS_OWN.match(line)]
    return [line[:_MOST_CHARACTERS] for line in spoken[-MOST_LINES:]]
