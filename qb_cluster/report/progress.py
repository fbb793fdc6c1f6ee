"""Progress of a run: a bar on a terminal, plain lines anywhere else."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qb_cluster.contracts import FinishedCell

# The driver shares its machine with what is timed: a lively bar would be foreign load.
REFRESH_PER_SECOND = 2
MOST_LINES = 50  # for one commit: ten thousand cells a second are not for reading
# Cells end in bursts, since a latency stage has its node to itself: a short memory knows no pace.
_PACE_S: Final = 300.0


class RunProgress:
    """Shows what a run is doing, and rows as they are finished.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.began = time.monotonic()
        self._console = console
        self._total = 0
        self._count: Callable[[], int] = lambda: 0
        self._done = 0
        self._statuses: Counter[str] = Counter()
        self._has_run = False
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=REFRESH_PER_SECOND,
            speed_estimate_period=_PACE_S,
            # A run that cannot start leaves its error, and no bar.
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def phase(self, text: str) -> None:
        """Tell what begins now, until the first cell that has run is there."""
        if self._has_run:
            return
        self._bar.update(self._task, description=text)
        if not self._console.is_terminal:
            self._print(f"{text} …")

    def begin(self, total: int, count: Callable[[], int]) -> None:
        """Take how far the run is.

        Args:
            total: how many rows there will be, those of earlier runs included.
            count: tells how many there are.
        """
        self._total, self._count, self._done = total, count, count()
        self._bar.live.transient = False
        started = self._bar.tasks[0].start_time
        # Not by an update: rows of earlier runs would count as the pace of this one.
        self._bar.reset(self._task, total=total, completed=self._done)
        self._bar.tasks[0].start_time = started

    def finished(self, cells: Sequence[FinishedCell]) -> None:
        """Show cells whose rows are on disk now."""
        self._statuses.update(ended.status for ended in cells)
        # Rows of cells that cannot run come first, and end no phase.
        self._has_run = self._has_run or any(ended.attempt > 0 for ended in cells)
        counts = ", ".join(f"{count} {status}" for status, count in self._statuses.most_common())
        is_crowd = len(cells) > MOST_LINES
        done = self._count()
        for ended in cells[:MOST_LINES]:
            self._done = min(self._done + 1, done)  # a cell that runs again counts once
            cell = ended.cell
            scheme = cell.scheme.label if cell.scheme else "float"
            bits = cell.bits or "f32"
            device = "" if cell.device.name == "cpu" else f"{cell.device.label} "
            what = f"{cell.model.label} {cell.dataset.label} {cell.backend.label}"
            name = f"{what} {device}{scheme} {bits}"
            # A cell that was never started is no news: the plan, or its baseline's row, said so.
            if ended.status != "ok" and ended.attempt > 0:
                self._say(ended.status, f"{name}: {ended.error}")
            if ended.status == "ok" and not self._console.is_terminal and not is_crowd:
                self._say("ok", name)
        self._done = done
        if is_crowd and not self._console.is_terminal:
            self._say("so far", counts)
        self._bar.update(self._task, completed=self._done)
        if self._has_run:
            self._bar.update(self._task, description=counts)

    def notice(self, text: str) -> None:
        """Tell the user."""
        self._print(f"note: {text}")

    def warn(self, text: str) -> None:
        """Tell the user of something that may be wrong."""
        self._print(f"warning: {text}")

    def end(self, lines: Iterable[str]) -> None:
        """Stop the bar, and say something below it."""
        self._bar.stop()
        for line in lines:
            self._print(line)

    def _say(self, status: str, text: str) -> None:
        self._print(f"{self._done:>5} of {self._total}  {status:<11} {text}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
