"""Choosing, ordering and naming rows and columns of the comparison, in SQL."""

import difflib
import sqlite3
from collections.abc import Sequence
from contextlib import closing

import pandas as pd

from qb_cluster.errors import QueryError
from qb_cluster.report.records import with_lists_as_text

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION}
_TABLE = "comparison"
_HOW = "write an SQL condition, such as \"backend = 'tflite' and bits <> 'w2'\""


def where(cells: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Keep the rows that an SQL condition is true of.

    Args:
        cells: the comparison.
        condition: of SQLite's dialect, over the columns of ``cells``; lists are text there, their
            members apart by "; ".

    Raises:
        QueryError: the condition is broken, or names no column.
    """
    with closing(sqlite3.connect(":memory:")) as database:
        plain = cells.reset_index(drop=True)
        with_lists_as_text(plain).to_sql(_TABLE, database, index_label="row_number")
        database.set_authorizer(_authorized)
        # A line of its own ends a comment.
        statement = f"SELECT row_number FROM {_TABLE} WHERE ({condition}\n)"  # noqa: S608 - it may only read
        try:
            rows = sorted({number for (number,) in database.execute(statement)})
        except sqlite3.Error as error:
            raise QueryError(_explained(str(error), condition, list(cells.columns))) from error
        except sqlite3.Warning as warning:  # two statements
            raise QueryError(f"--where: {warning}; {_HOW}") from warning
    return plain.iloc[rows].reset_index(drop=True)


def in_order_of(cells: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Sort rows by columns; nulls come last.

    Args:
        cells: the comparison.
        columns: names, separated by commas; ``-`` before a name is descending.

    Raises:
        QueryError: there is no such column.
    """
    names = [name.strip() for name in columns.split(",")]
    plain = [name.removeprefix("-") for name in names]
    _check(plain, list(cells.columns), "--sort")
    ascending = [not name.startswith("-") for name in names]
    sortable = with_lists_as_text(cells).reset_index(drop=True)
    order = sortable.sort_values(plain, ascending=ascending, kind="stable").index
    return cells.iloc[order].reset_index(drop=True)


def some_columns(cells: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Keep columns, in the order given.

    Args:
        cells: the comparison.
        columns: names, separated by commas.

    Raises:
        QueryError: there is no such column.
    """
    names = list(dict.fromkeys(name.strip() for name in columns.split(",")))
    _check(names, list(cells.columns), "--columns")
    return cells[names]


def _authorized(action: int, table: str | None, *_: str | None) -> int:
    """Let SQLite read the comparison, and do nothing else."""
    is_reading = action in _READING or (action == sqlite3.SQLITE_READ and table == _TABLE)
    return sqlite3.SQLITE_OK if is_reading else sqlite3.SQLITE_DENY


def _check(names: Sequence[str], known: Sequence[str], option: str) -> None:
    for name in names:
        if name not in known:
            raise QueryError(_no_column(option, name, known))


def _explained(error: str, condition: str, known: Sequence[str]) -> str:
    if error.startswith("no such column: "):
        return _no_column("--where", error.removeprefix("no such column: "), known)
    error = error.replace("\n)", ")")
    is_denied = "not authorized" in error or "prohibited" in error
    what = "only conditions are allowed" if is_denied else error
    return f"--where {condition!r}: {what}; {_HOW}"


def _no_column(option: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"{option}: no column '{name}'{hint} There are: {', '.join(known)}"
