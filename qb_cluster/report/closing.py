"""What `qb run` says at its end."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from qb_cluster.report.reasons import reason_lines
from qb_cluster.report.run_status import reasons
from qb_cluster.store.reading import read_columns

MOST_REASONS: Final = 8
_COLUMNS: Final = (*("status", "error", "model", "dataset", "backend", "device", "scheme", "bits"),)


@dataclass(frozen=True, slots=True)
class Closing:
    """How a run ended.

    Attributes:
        place: the run folder.
        statuses: of the plan's cells that have a row, by cell id.
        planned: cells of the plan.
        written: rows that this run wrote.
        seconds: it took.
        is_kept: whether the folder is there for a report afterwards.
    """

    place: str
    statuses: Mapping[str, str]
    planned: int
    written: int
    seconds: float
    is_kept: bool = True

    def lines(self) -> Iterator[str]:
        """Say what is done, why cells are not ok, and what to type next.

        Raises:
            RunFolderError: the folder cannot be read.
        """
        counts = Counter(self.statuses.values())
        yield self._headline(counts)
        if len(counts) > (1 if "ok" in counts else 0):
            rows = read_columns(self.place, _COLUMNS)
            why = reasons(rows[rows["cell_id"].isin(list(self.statuses))])
            yield from reason_lines(why, MOST_REASONS, f"qb status {self.place}")
        if counts and self.is_kept:
            yield f"next: qb report {self.place}"

    def _headline(self, counts: Mapping[str, int]) -> str:
        done = len(self.statuses)
        begin, took = f"{done}/{self.planned} done", f"{self.seconds:.0f} s"
        if done == self.planned and not self.written:
            return f"{begin}; nothing new to run ({took})"
        by_count = sorted(counts.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{count} {status}" for status, count in by_count)
        new = f", {self.written} new" if self.written < done else ""
        return f"{begin}{': ' if listed else ''}{listed} ({took}{new})"
