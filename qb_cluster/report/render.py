"""The report on a terminal and as Markdown."""

import html
import re
from collections.abc import Mapping
from typing import Final

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text
from tabulate import tabulate

from qb_cluster.contracts import STATUSES
from qb_cluster.report.document import Document
from qb_cluster.report.table import Table

_STYLES: Final = {
    r"\b(worse|slower)\b": "red",
    r"\b(within|faster)\b": "green",
    r"\b(undecided|partial)\b": "yellow",
    r"\b(sim|same speed)\b|\?|^–$": "dim",
    rf"^({'|'.join(status for status in STATUSES if status != 'ok')})$": "yellow",
}
_EMPHASIS: Final = re.compile(r"\*|(?<!\w)_+|_+(?!\w)")


def to_terminal(document: Document, console: Console) -> None:
    """Print the report, no line wider than the console."""
    # Text, not str: a label such as static[granularity=per_tensor] is no markup.
    console.print(Text(document.title, style="bold"))
    for line in document.summary:
        console.print(Text(line))
    for table in document.tables:
        console.print()
        console.print(Text(table.title, style="bold"))
        for part in _fitting(table, console):
            console.print(part)
    console.print()
    for line in document.legend:
        console.print(Text(line, style="dim"))
    for problem in document.problems:
        console.print(Text(problem, style="yellow"))


def to_markdown(
    document: Document, figures: Mapping[str, str] | None = None, first: str = ""
) -> str:
    """Write the report as GitHub's Markdown.

    Args:
        document: the report.
        figures: what each picture beside it shows, by file name.
        first: Markdown that comes before its tables.
    """
    blocks = [f"# {escaped(document.title)}", *map(escaped, document.summary)]
    if first:
        blocks.append(first.rstrip())
    for table in document.tables:
        blocks.append(f"## {escaped(table.title)}")
        rows = [[escaped(text) for text in row] for row in table.rows]
        header = [escaped(text) for text in table.header]
        blocks.append(tabulate(rows, headers=header, tablefmt="github", disable_numparse=True))
    blocks += [f"![{escaped(shows)}]({name})" for name, shows in (figures or {}).items()]
    blocks.append("\n".join(f"- {escaped(line)}" for line in document.legend))
    if document.problems:
        blocks.append("\n".join(f"- {escaped(problem)}" for problem in document.problems))
    return "\n\n".join(blocks) + "\n"


def _fitting(table: Table, console: Console) -> list[rich.table.Table]:
    """Spread a grid's columns over as many tables as the width asks for."""
    everything = list(range(1, len(table.header)))
    if not table.is_grid:
        return [_part(table, everything)]
    label_width = console.width // 3
    unbounded = console.options.update(max_width=100_000)
    parts, taken = [], everything[:1]
    for column in everything[1:]:
        wider = _part(table, [*taken, column], label_width)
        if console.measure(wider, options=unbounded).maximum > console.width:
            parts.append(_part(table, taken, label_width))
            taken = []
        taken.append(column)
    return [*parts, _part(table, taken, label_width)]


def _part(table: Table, columns: list[int], label_width: int | None = None) -> rich.table.Table:
    """Make a table of the first column and some others."""
    part = rich.table.Table(
        box=box.HORIZONTALS if table.is_grid else box.SIMPLE_HEAD,
        show_lines=table.is_grid,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    part.add_column(Text(table.header[0]), overflow="fold", max_width=label_width)
    for column in columns:
        part.add_column(Text(table.header[column]), overflow="fold")
    for row in table.rows:
        part.add_row(Text(row[0]), *(_styled(row[column]) for column in columns))
    return part


def _styled(content: str) -> Text:
    text = Text(content)
    for pattern, style in _STYLES.items():
        text.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    return text


def escaped(text: str) -> str:
    """Write text so that Markdown shows it as it is; a line break stays one."""
    plain = _EMPHASIS.sub(lambda match: "".join(f"\\{c}" for c in match[0]), text)
    return html.escape(plain, quote=False).replace("|", r"\|").replace("\n", "<br>")
