"""The self-check as a table in the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from qb_cluster.selfcheck.check import Check


def print_checks(checks: Iterable[Check], console: Console) -> bool:
    """Print checks as a table, and one line with how many there were.

    Args:
        checks: consumed as they come; the table appears at the end.
        console: where to.

    Returns:
        Whether every law holds.
    """
    table = Table(title="selfcheck")
    table.add_column("subject", overflow="fold")
    table.add_column("law", overflow="fold")
    for heading in ("expected", "got", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("note", overflow="fold")
    every = list(checks)
    for check in every:
        verdict = "–" if check.expected is None else "ok" if check.ok else "MISS"
        table.add_row(
            check.subject,
            check.law,
            _figure(check.expected),
            _figure(check.got),
            _figure(check.tolerance, "±"),
            verdict,
            check.note,
            style=None if check.ok else "bold red",
        )
    console.print(table, markup=False)
    missed = sum(not check.ok for check in every)
    unchecked = sum(check.expected is None for check in every)
    held = len(every) - missed - unchecked
    console.print(f"{held} laws hold, {missed} missed, {unchecked} not checked", highlight=False)
    return not missed


def _figure(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{sign}{value:.4g}"
