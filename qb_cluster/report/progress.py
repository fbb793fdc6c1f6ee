"""Progress of a run: a bar on a terminal, plain lines anywhere else."""

from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

# The driver shares its machine with what is timed: a lively bar would be foreign load.
REFRESH_PER_SECOND = 2


class RunProgress:
    """Shows rows as they are finished.

    Args:
        console: where to.
        total: how many rows there will be, those of earlier runs included.
        done: how many there are.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._done = done
        self._statuses: Counter[str] = Counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=REFRESH_PER_SECOND,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

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

    def finished(self, row: Mapping[str, Any]) -> None:
        """Show a row that is on disk now."""
        self._done += 1
        self._statuses[row["status"]] += 1
        counts = ", ".join(f"{count} {status}" for status, count in self._statuses.most_common())
        self._bar.update(self._task, completed=self._done, description=counts)
        name = " ".join(str(row[key]) for key in ("model", "dataset", "backend", "scheme", "bits"))
        # A cell that was never started is no news: the plan, or its baseline's row, has said so.
        if row["status"] != "ok" and row["attempt"] > 0:
            self._say(row["status"], f"{name}: {row['error']}")
        if row["status"] == "ok" and not self._console.is_terminal:
            self._say("ok", name)

    def _say(self, status: str, text: str) -> None:
        self._console.print(
            f"{self._done:>5} of {self._total}  {status:<11} {text}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
