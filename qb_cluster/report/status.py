"""``qb status``: the state of a run, on a terminal or as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Final

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from qb_cluster.report.reasons import reason_lines
from qb_cluster.report.run_status import RunStatus, read_status

MOST_REASONS: Final = 100  # the closing lines of `qb run` send the reader here for the rest
_GIVEN_UP: Final = 8


def print_status(place: str | Path, console: Console) -> None:
    """Read the state of a run and print it.

    Raises:
        RunFolderError: it is no run folder, cannot be read, or a newer QuantBench wrote it.
    """
    to_terminal(read_status(place), console)


def to_terminal(status: RunStatus, console: Console) -> None:
    """Print the state of a run."""
    for line in _headline(status):
        # Text, not str: errors and labels hold brackets and are no markup.
        console.print(Text(line), soft_wrap=True)
    for line in reason_lines(status.reasons, MOST_REASONS, f"qb status --json {status.place}"):
        console.print(Text(line), soft_wrap=True)
    for cell in status.given_up[:_GIVEN_UP]:
        console.print(Text(f"\ngiven up: {cell.name} ({cell.status}, {cell.cell_id})"))
        console.print(Text(cell.story), soft_wrap=True)
    if len(status.given_up) > _GIVEN_UP:
        console.print(Text(f"\n… and {len(status.given_up) - _GIVEN_UP} more cells given up"))
    _print_table(
        console,
        ("item", "computed", "reused", "total"),
        [(r.what, str(r.made), str(r.found), str(r.made + r.found)) for r in status.reuse],
    )
    _print_table(console, ("host", "cells"), [(h, str(n)) for h, n in status.hosts.items()])
    for problem in status.problems:
        console.print(Text(problem, style="yellow"))


def to_json(status: RunStatus) -> str:
    """Give the same as one JSON object, under the names of ``RunStatus``."""
    return json.dumps(asdict(status), default=datetime.isoformat, ensure_ascii=False, indent=2)


def _headline(status: RunStatus) -> Iterator[str]:
    planned = "" if status.planned is None else f" of {status.planned}"
    left = "" if status.left is None else f", {status.left} left"
    yield f"{status.sweep} in {status.place}: {status.finished}{planned} cells finished{left}"
    if status.unplanned:
        rows = "row is" if status.unplanned == 1 else "rows are"
        yield f"{status.unplanned} more {rows} of cells that the spec no longer has"
    if status.statuses:
        yield ", ".join(f"{count} {status}" for status, count in status.statuses.items())
    if status.driver is None:
        resume = "; run the same `qb run` command again to resume" if status.left else ""
        yield f"no driver is running{resume}"
        return
    who = status.driver
    unless = "" if who.is_certain else ", unless it was killed"
    since = f"{who.since:%Y-%m-%d %H:%M:%S %Z}"
    yield f"process {who.pid} on {who.host} has been running since {since}{unless}"
    if status.cells_per_minute is not None:
        rough = "" if status.minutes_left is None else f", about {_span(status.minutes_left)} left"
        yield f"{status.cells_per_minute:.3g} cells/min{rough}"


def _span(minutes: float) -> str:
    if minutes < 1:
        return "1 min"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _print_table(console: Console, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        return
    table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, sample in zip(header, rows[0], strict=True):
        table.add_column(name, overflow="fold", justify="right" if sample.isdigit() else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
