"""Why cells are not ok: those that ended alike together."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_CELL_ID: Final = re.compile(r"\b[0-9a-f]{16}\b")


@dataclass(frozen=True, slots=True)
class Reason:
    """Cells that ended alike.

    Attributes:
        status: what all of them ended as.
        reason: what they said, but for the ids of cells.
        cells: how many they are.
        example: name of the first of them.
    """

    status: str
    reason: str
    cells: int
    example: str


def grouped(rows: Iterable[tuple[str, str | None, str]]) -> tuple[Reason, ...]:
    """Put cells together that ended alike, the most frequent first.

    Args:
        rows: status, reason and name of each cell.
    """
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for status, reason, name in rows:
        kind = status, _CELL_ID.sub("…", reason or "")
        count, example = found.get(kind, (0, name))
        found[kind] = count + 1, example
    most_first = sorted(found.items(), key=lambda item: -item[1][0])
    return tuple(Reason(*kind, *counted) for kind, counted in most_first)


def reason_lines(reasons: Sequence[Reason], most: int, rest: str) -> Iterator[str]:
    """Give a line for each reason, and one for those that are left out.

    Args:
        reasons: in order.
        most: the most lines of reasons.
        rest: the command that shows the others.
    """
    shown = reasons[:most]
    for one in shown:
        what = one.reason.partition("\n")[0] or "no reason was given"
        yield f"{one.cells:>5}  {one.status:<11} {what} (e.g. {one.example})"
    if left := len(reasons) - len(shown):
        more = "1 more reason" if left == 1 else f"{left} more reasons"
        yield f"… and {more} ({rest})"
