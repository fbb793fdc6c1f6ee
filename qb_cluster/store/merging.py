"""When parts are merged, and which."""

from collections.abc import Sequence
from typing import Final

MANY: Final = 64
"""So many small parts of a size, one after the other, are merged into one."""
MANY_AT_THE_END: Final = 16
_TIERS: Final = (64, 4_096)
"""Rows of a small part, and of a middling one; larger ones are left alone."""


def parts_to_merge(rows: Sequence[int], many: int = MANY) -> int:
    """Choose parts to merge, as a log-structured merge tree does.

    Many small parts make a middling one, twice at most, and many middling ones a large one, so a
    row is rewritten three times at most, and no merge has more than 64 × 4,096 rows or so.

    Args:
        rows: of all parts, in order of time.
        many: how many parts of a size are too many.

    Returns:
        How many of the last parts to merge into one; 0 for none.
    """
    above = -1
    for limit in _TIERS:
        run = next((i for i, n in enumerate(reversed(rows)) if n > limit), len(rows))
        if sum(n > above for n in rows[len(rows) - run :]) >= many:
            return run
        above = limit
    return 0
