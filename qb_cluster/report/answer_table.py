"""The answer as one table: on a terminal of any width, and as Markdown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import rich.table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from tabulate import tabulate

from qb_cluster.report import cell_text
from qb_cluster.report.answer import FLOAT, NAME, Answer, Group, best, counted, kind
from qb_cluster.report.comparison import POINTS
from qb_cluster.report.records import Row
from qb_cluster.report.render import escaped

SCREEN_LINES: Final = 24
PARETO: Final = "★"
MOST_GROUPS: Final = 20
LEGEND: Final = f"{PARETO} not beaten in quality, size and latency at once"
NO_ROWS: Final = "no cell matches"
_STYLES: Final = {"within": "green", "worse": "red", "undecided": "yellow", "float": "dim"}
_NARROWEST_NAME: Final = 16
_HEADER_LINES: Final = 2


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the answer.

    Attributes:
        title: given the rows, of at most two lines.
        text: given a row and the rows.
        drop: those with the highest go first where width is short; 0 stays.
        justify: of the text.
    """

    title: Callable[[Sequence[Row]], str]
    text: Callable[[Row, Sequence[Row]], str]
    drop: int = 0
    justify: Literal["left", "right"] = "right"


def _measured(
    title: Callable[[Sequence[Row]], str],
    form: Callable[[Row, Sequence[Row]], str],
    needs: str,
    drop: int,
) -> _Column:
    """Make a column that is empty where nothing was measured."""

    def text(row: Row, rows: Sequence[Row]) -> str:
        return form(row, rows) if row["status"] == "ok" and row[needs] is not None else ""

    return _Column(title, text, drop)


def _unit(
    rows: Sequence[Row], column: str, units: Sequence[tuple[str, float]]
) -> tuple[str, float]:
    """Choose the largest unit in which every value of a column is 1 or more."""
    known = [row[column] for row in rows if row[column]]
    fitting = [unit for unit in units if known and unit[1] <= min(known)]
    return fitting[-1] if fitting else units[0]


def _scaled(name: str, column: str, units: Sequence[tuple[str, float]], drop: int) -> _Column:
    """Make a column of numbers in one unit, which its title names."""

    def title(rows: Sequence[Row]) -> str:
        return f"{name}\n{_unit(rows, column, units)[0]}"

    def text(row: Row, rows: Sequence[Row]) -> str:
        number = row[column] / _unit(rows, column, units)[1]
        return f"{number:.{0 if number >= 9.95 else 1}f}"

    return _measured(title, text, column, drop)


_COLUMNS: Final = (
    _Column(
        lambda _: "\nconfiguration",
        lambda row, _: f"{PARETO if row['pareto'] else ' '}{row[NAME]}",
        justify="left",
    ),
    _measured(
        lambda rows: f"value\n{'%' if _in_points(rows) else ''}",
        lambda row, _: cell_text.value(row).removesuffix("%"),
        "value",
        drop=4,
    ),
    _measured(
        lambda rows: f"Δ\n{'pt' if _in_points(rows) else ''}",
        lambda row, _: cell_text.change(row["delta"], row),
        "delta",
        drop=0,
    ),
    _measured(
        lambda rows: f"interval\n{100 * rows[0]['confidence']:g} %",
        lambda row, _: cell_text.reach(row),
        "delta",
        drop=1,
    ),
    _scaled("size", "artifact_bytes", (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)), drop=2),
    _scaled("time", "latency_median_ns", cell_text.TIME_UNITS, drop=3),
    _measured(
        lambda _: "\nspeed",
        lambda row, _: "" if kind(row) == FLOAT else cell_text.short_speed(row),
        "speedup",
        drop=0,
    ),
    _measured(lambda _: "p\n1-sided", lambda row, _: _p(row["p_verdict"]), "p_verdict", drop=7),
    _measured(lambda _: "p\nadjusted", lambda row, _: _p(row["p_adjusted"]), "p_adjusted", drop=6),
    _measured(
        lambda _: "n\nneeded",
        lambda row, _: f"{row['examples_needed']:,}",
        "examples_needed",
        drop=5,
    ),
    _Column(lambda _: "\nverdict", lambda row, _: kind(row), justify="left"),
)
_EXTRA: Final = 5  # columns with this `drop` or more are there where there is room, else unsaid
_NAME: Final = 0  # the column that is folded where even the last one dropped is not enough


def _p(number: float) -> str:
    return f"{number:.4f}" if number >= 5e-5 else "<0.0001"


def _in_points(rows: Sequence[Row]) -> bool:
    return any(row["metric_unit"] == POINTS for row in rows)


def to_terminal(answer: Answer, console: Console, *, everything: bool = False) -> None:
    """Print the answer.

    Args:
        answer: of the run.
        console: where to; no line is wider.
        everything: all rows; else what fits 24 lines, and a line of what was left out.
    """
    parts = list(_parts(answer, _chosen(answer, console, everything=everything), console.width))
    over = sum(len(console.render_lines(part)) for part in parts) - SCREEN_LINES
    if over > 0 and not everything:  # names that fold, columns without room
        chosen = _chosen(answer, console, everything=False, over=over)
        parts = list(_parts(answer, chosen, console.width))
    for part in parts:
        console.print(part)


def to_markdown(answer: Answer) -> str:
    """Write the answer with all its rows as GitHub's Markdown."""
    blocks = [escaped(answer.title), *(() if answer.groups else (NO_ROWS,))]
    for group in answer.groups:
        blocks.append(f"**{escaped(group.headline)}**")
        header = [escaped(column.title(group.rows).strip()) for column in _COLUMNS]
        rows = [[escaped(c.text(row, group.rows).strip()) for c in _COLUMNS] for row in group.rows]
        sides = [column.justify for column in _COLUMNS]
        table = tabulate(
            rows, headers=header, tablefmt="github", disable_numparse=True, colalign=sides
        )
        blocks.append(str(table))
    blocks.append("\n".join(f"- {escaped(note)}" for note in (*answer.notes, LEGEND)))
    return "\n\n".join(blocks) + "\n"


def _parts(
    answer: Answer, shown: Sequence[tuple[Group, list[Row]]], width: int
) -> Iterator[rich.table.Table | Text]:
    """Give what is printed, from top to bottom."""
    rows = [row for _, chosen in shown for row in chosen]
    yield Text(answer.title, style="bold")
    if rows:
        fitting, dropped = _fitting(rows, width)
        widths = _widths(rows, fitting, width)
        yield _table([], rows, fitting, widths, header=True)
        for group, chosen in shown:
            yield Text(group.headline, style="bold")
            yield _table(chosen, rows, fitting, widths, header=False)
        if dropped:
            names = ", ".join(column.title(rows).partition("\n")[0] for column in dropped)
            yield Text(f"no room for: {names} (widen the terminal)", style="dim")
    else:
        yield Text(NO_ROWS)
    for line in _after(answer, shown):
        yield Text(line)
    yield Text(LEGEND, style="dim")


def _chosen(
    answer: Answer, console: Console, *, everything: bool, over: int = 0
) -> list[tuple[Group, list[Row]]]:
    """Choose the rows of each group: all, or as many as fit a screen, and one at least.

    Args:
        answer: of the run.
        console: where to.
        everything: all rows.
        over: lines that the screen has to be shorter than rows and sentences tell.
    """
    if everything:
        return [(group, list(group.rows)) for group in answer.groups]
    groups = answer.groups[:MOST_GROUPS]
    around = (answer.title, *(g.headline for g in groups), *_after(answer, []), LEGEND)
    taken = _HEADER_LINES + sum(len(Text(line).wrap(console, console.width)) for line in around)
    each, more = divmod(max(SCREEN_LINES - taken - over, len(groups)), max(1, len(groups)))
    return [(g, best(g, each + (number < more))) for number, g in enumerate(groups)]


def _after(answer: Answer, shown: Sequence[tuple[Group, list[Row]]]) -> Iterator[str]:
    """Give the lines after the table: what was left out, and the notes."""
    ids = {row["cell_id"] for _, rows in shown for row in rows}
    left = [row for group in answer.groups for row in group.rows if row["cell_id"] not in ids]
    if left:
        of = len(answer.groups) - max(len(shown), min(len(answer.groups), MOST_GROUPS))
        models = f", those of {of:,} more models or devices among them" if of > 0 else ""
        yield f"{len(left):,} more{models}: {counted(left)}: --full"
    yield from answer.notes


def _fitting(rows: Sequence[Row], width: int) -> tuple[list[_Column], list[_Column]]:
    """Keep the columns that say something and fit a width; give those that had to go."""
    fitting = [column for column in _COLUMNS if any(column.text(row, rows) for row in rows)]
    dropped = []
    while _total(_natural(rows, fitting)) > width:
        candidates = [column for column in fitting if column.drop]
        if not candidates:
            break
        last = max(candidates, key=lambda column: column.drop)
        fitting.remove(last)
        if last.drop < _EXTRA:
            dropped.append(last)
    return fitting, dropped


def _natural(rows: Sequence[Row], columns: Sequence[_Column]) -> list[int]:
    return [
        max(map(cell_len, (*column.title(rows).split("\n"), *(column.text(r, rows) for r in rows))))
        for column in columns
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(widths) - 1


def _widths(rows: Sequence[Row], columns: Sequence[_Column], width: int) -> list[int]:
    """Give each column the width it wants; names are folded where that is too much."""
    widths = _natural(rows, columns)
    over = _total(widths) - width
    if over > 0:
        widths[_NAME] = max(_NARROWEST_NAME, widths[_NAME] - over)
    return widths


def _table(
    shown: Sequence[Row],
    rows: Sequence[Row],
    columns: Sequence[_Column],
    widths: Sequence[int],
    *,
    header: bool,
) -> rich.table.Table:
    """Make a table of some rows, in columns that suit all."""
    table = rich.table.Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_header=header,
        header_style="dim",
    )
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.title(rows)),
            justify=column.justify,
            overflow="fold",
            min_width=width,
            max_width=width,
        )
    for row in shown:
        texts = [Text(column.text(row, rows)) for column in columns]
        texts[-1].stylize(_STYLES.get(kind(row), ""))
        table.add_row(*texts)
    return table
