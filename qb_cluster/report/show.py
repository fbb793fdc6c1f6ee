"""``qb report``: write the files, then print what was asked for."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from qb_cluster.contracts.judgement import EVERY_CELL, Adjust, Judgement, ToleranceRule
from qb_cluster.contracts.tolerance import Tolerance
from qb_cluster.errors import QueryError, RunFolderError
from qb_cluster.report import answer_table, query
from qb_cluster.report.analysis import Analysis, analyse, judgement_of
from qb_cluster.report.answer import Answer, answer
from qb_cluster.report.document import build
from qb_cluster.report.records import list_as_text, records, with_lists_as_text
from qb_cluster.report.render import escaped, to_terminal
from qb_cluster.report.write import write_files
from qb_cluster.store.reading import StoredRun, read_run

Format = Literal["table", "md", "csv", "json"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a report.

    Attributes:
        format: of what is printed.
        full: also the grids, the agreement of backends, reasons and notes.
        where: SQL condition over the columns of the comparison.
        sort: columns to sort by, see ``query.in_order_of``; best first unless given.
        columns: columns to print, see ``query.some_columns``.
        tolerance: in place of the sweep's, for every cell.
        adjust: in place of the sweep's.
    """

    format: Format = "table"
    full: bool = False
    where: str | None = None
    sort: str | None = None
    columns: str | None = None
    tolerance: Tolerance | None = None
    adjust: Adjust | None = None


def show_report(
    run_dir: str | Path, console: Console, notice: Callable[[str], None], wish: Wish | None = None
) -> None:
    """Write the report of a run, finished or not, into ``run_dir/report``, then print it.

    Args:
        run_dir: the run folder: a path, or the URL of an object store.
        console: where to print.
        notice: told what was written, and what could not be.
        wish: what is printed; the first screen unless given.

    Raises:
        RunFolderError: it is no run folder, has no results yet, or cannot be written.
        QueryError: what was asked for is not a condition, names no column, or is a tolerance
            without a unit where two are possible.
    """
    wish = wish or Wish()
    run = read_run(run_dir)
    if run.results.empty:
        found = "\n".join(("no cell has finished yet", *run.problems))
        raise RunFolderError(f"{run_dir}: {found}; run `qb run` first")
    analysis = analyse(run, _judgement(run, wish))
    cells = _asked(analysis.comparison, wish)  # a slip in it is told before anything is written
    document = build(analysis)
    for path in write_files(analysis, document, notice):
        notice(f"wrote {path}")
    _print(analysis, cells, console, wish)
    if wish.full and wish.format == "table":
        console.print()
        to_terminal(document, console)
    else:
        for problem in run.problems:
            notice(problem)


def _judgement(run: StoredRun, wish: Wish) -> Judgement:
    judgement = judgement_of(run)
    if wish.tolerance is not None:
        if not wish.tolerance.unit and judgement.shares & set(run.results["metric"].dropna()):
            of = f"{wish.tolerance} pt (percentage points), or {wish.tolerance} %"
            raise QueryError(f"--tolerance {wish.tolerance}: of what? write {of}")
        judgement = replace(judgement, rules=(ToleranceRule(EVERY_CELL, wish.tolerance),))
    return replace(judgement, adjust=wish.adjust or judgement.adjust)


def _asked(comparison: pd.DataFrame, wish: Wish) -> pd.DataFrame:
    cells = comparison
    if wish.where is not None:
        cells = query.where(cells, wish.where)
    if wish.sort is not None:
        cells = query.in_order_of(cells, wish.sort)
    if wish.columns is not None:
        query.some_columns(cells, wish.columns)
    return cells


def _print(found: Analysis, cells: pd.DataFrame, console: Console, wish: Wish) -> None:
    chosen = cells if wish.columns is None else query.some_columns(cells, wish.columns)
    if wish.format == "csv":
        _plain(console, with_lists_as_text(chosen).to_csv(index=False))
        return
    if wish.format == "json":
        structure = _as_json(answer(found, cells), chosen)
        _plain(
            console,
            json.dumps(structure, ensure_ascii="utf" not in console.encoding, indent=2) + "\n",
        )
        return
    if wish.columns is not None:
        style = "github" if wish.format == "md" else "plain"
        form = (lambda value: escaped(_text(value))) if wish.format == "md" else _text
        rows = [[form(value) for value in row.values()] for row in records(chosen)]
        table = tabulate(rows, headers=list(chosen.columns), tablefmt=style, disable_numparse=True)
        _plain(console, f"{table}\n")
        return
    said = answer(found, cells)
    if wish.sort is not None:
        said = _as_sorted(said, cells)
    if wish.format == "md":
        _plain(console, answer_table.to_markdown(said))
        return
    everything = wish.full or wish.where is not None or wish.sort is not None
    answer_table.to_terminal(said, console, everything=everything)


def _as_sorted(said: Answer, cells: pd.DataFrame) -> Answer:
    """Put the rows of each group into the order of the cells."""
    places = {cell_id: number for number, cell_id in enumerate(cells["cell_id"])}
    groups = (
        replace(g, rows=tuple(sorted(g.rows, key=lambda row: places[row["cell_id"]])))
        for g in said.groups
    )
    return replace(said, groups=tuple(groups))


def _as_json(said: Answer, cells: pd.DataFrame) -> dict[str, Any]:
    answers = [
        {
            "dataset": group.place[0],
            "metric": group.place[1] or None,
            "device": group.place[2],
            "threads": group.place[3],
            "model": group.model,
            "headline": group.headline,
            "fastest_cell_id": None if group.fastest is None else group.fastest["cell_id"],
            "smallest_cell_id": None if group.smallest is None else group.smallest["cell_id"],
        }
        for group in said.groups
    ]
    rows = [{name: _finite(value) for name, value in row.items()} for row in records(cells)]
    return {"answers": answers, "notes": list(said.notes), "cells": rows}


def _finite(value: object) -> object:
    """Give null for a number that JSON cannot write."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(console: Console, text: str) -> None:
    console.file.write(text)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return list_as_text(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
