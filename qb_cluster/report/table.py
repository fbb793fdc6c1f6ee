"""A table of text, before it is rendered."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. A line break in a cell is a line break on the page.

    Attributes:
        title: what it shows.
        header: one text a column.
        rows: one text a column each.
        is_grid: whether its columns after the first are alike, so that they may be spread
            over several tables where the page is narrow.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_grid: bool = False
