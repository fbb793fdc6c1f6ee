"""The report before it is rendered: titles, lines and tables of plain text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qb_cluster.report import cell_text
from qb_cluster.report.cell_text import Row
from qb_cluster.report.comparison import baselines, compare, in_order
from qb_cluster.store.reading import StoredRun

_MOST_REASONS: Final = 20
_NOTHING: Final = "–"

_Place = tuple[str, str, str, int]
"""Dataset, metric, device, threads: cells that differ in one of these never share a table."""


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


@dataclass(frozen=True, slots=True)
class Document:
    """A report.

    Attributes:
        title: its heading.
        summary: how many cells there are, and how they ended.
        tables: in order.
        legend: how to read them.
        problems: files of the run that could not be read.
    """

    title: str
    summary: tuple[str, ...]
    tables: tuple[Table, ...]
    legend: tuple[str, ...]
    problems: tuple[str, ...]


def build(run: StoredRun) -> Document:
    """Write the report of a run."""
    return Document(
        title=f"Sweep {run.sweep}: quantized against float",
        summary=tuple(_summary(run)),
        tables=(*_comparison_tables(run.results), *_reason_tables(run.results)),
        legend=tuple(_legend(run.results)),
        problems=run.problems,
    )


def _summary(run: StoredRun) -> Iterator[str]:
    statuses = run.results["status"].value_counts().sort_index(key=lambda names: names != "ok")
    counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
    yield f"{len(run.results)} cells: {counts}."
    missing = (run.planned_cells or 0) - len(run.results)
    if missing > 0:
        # Rows of an earlier spec may belong to this one too, or not.
        is_exact = (run.results["spec_digest"] == run.spec_digest).all()
        count = f"{missing}" if is_exact else f"at least {missing}"
        yield (
            f"Unfinished: {count} of {run.planned_cells} planned cells have no row yet; the same "
            "`qb run` again runs only those."
        )


def _comparison_tables(results: pd.DataFrame) -> Iterator[Table]:
    floats = _by_place(_records(baselines(results)))
    cells = _by_place(_records(compare(results)))
    for place in sorted({*floats, *cells}):
        dataset, metric, device, threads = place
        where = f"{dataset} on {device}, {threads} thread{'' if threads == 1 else 's'}"
        ours = floats.get(place, [])
        if ours:
            yield _baseline_table(f"float baselines · {where}{_n(ours)}", metric, ours)
        by_scheme: dict[str, list[Row]] = {}
        for row in cells.get(place, []):
            by_scheme.setdefault(row["scheme"], []).append(row)
        for scheme, group in sorted(by_scheme.items()):
            change = f"change of {cell_text.unit(metric)}"
            yield _grid(f"{scheme} · {change} · {where}{_n(group)}", group)


def _records(cells: pd.DataFrame) -> list[Row]:
    plain = cells.astype(object).where(cells.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _by_place(cells: Sequence[Row]) -> dict[_Place, list[Row]]:
    places: dict[_Place, list[Row]] = {}
    for row in cells:
        place = row["dataset"], row["metric"], row["device"], row["threads"]
        places.setdefault(place, []).append(row)
    return places


def _n(cells: Sequence[Row]) -> str:
    """Say on how many examples; nothing while nobody knows."""
    counts = [row["examples"] for row in cells if row["examples"] is not None]
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f" · n = {low}" if low == high else f" · n = {low}–{high}"


def _baseline_table(title: str, metric: str, floats: Sequence[Row]) -> Table:
    rows = (
        (
            row["model"],
            row["backend"],
            cell_text.value(row, metric),
            cell_text.duration(row["latency_median_ns"]) or _NOTHING,
            cell_text.interval(row["speedup_low"], row["speedup_high"], cell_text.ratio)
            or _NOTHING,
            cell_text.size(row["artifact_bytes"]) or _NOTHING,
        )
        for row in floats
    )
    return Table(title, ("model", "backend", metric, "latency", "A/A", "size"), tuple(rows))


def _grid(title: str, cells: Sequence[Row]) -> Table:
    """Make a table with a row a model and backend, and a column a bit-width."""
    widths = {row["bits"]: (row["weight_bits"], row["activation_bits"]) for row in cells}
    columns = sorted(widths, key=lambda bits: widths[bits], reverse=True)
    slots: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in cells:
        by_bits = slots.setdefault((row["model"], row["backend"]), {})
        by_bits.setdefault(row["bits"], []).append(row)
    rows = (
        (
            f"{model}\n{backend}",
            *(cell_text.slot(by_bits[bits]) if bits in by_bits else _NOTHING for bits in columns),
        )
        for (model, backend), by_bits in slots.items()
    )
    return Table(title, ("model\nbackend", *columns), tuple(rows), is_grid=True)


def _reason_tables(results: pd.DataFrame) -> Iterator[Table]:
    """List what went wrong, and what was remarkable though it went well."""
    bad, remarkable = [], []
    for row in _records(in_order(results)):
        if row["status"] != "ok":
            lines = (row["error"] or "").splitlines()
            bad.append((row["status"], lines[0] if lines else "no reason given", row))
        elif row["notes"]:
            remarkable += [("ok", note, row) for note in row["notes"].split("; ")]
    if bad:
        yield _reasons("not ok", "reason", bad)
    if remarkable:
        yield _reasons("notes on cells that are ok", "note", remarkable)


def _reasons(title: str, what: str, cells: Sequence[tuple[str, str, Row]]) -> Table:
    """Count cells by status and reason, the most frequent first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for status, why, row in cells:
        groups.setdefault((status, why), []).append(row)
    counted = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = [
        (status, str(len(group)), why, _name(group[0]))
        for (status, why), group in counted[:_MOST_REASONS]
    ]
    rest = counted[_MOST_REASONS:]
    if rest:
        count = sum(len(group) for _, group in rest)
        rows.append(("…", str(count), f"{len(rest)} more, in the table `results`", ""))
    return Table(title, ("status", "cells", what, "such as"), tuple(rows))


def _name(row: Row) -> str:
    return f"{row['model']} · {row['backend']} · {row['scheme']} {row['bits']}"


def _legend(results: pd.DataFrame) -> Iterator[str]:
    levels = " / ".join(f"{100 * level:g} %" for level in sorted(results["confidence"].unique()))
    yield (
        "first line: quantized minus float on the same examples (accuracy in percentage points; "
        f"negative is a drop), with its {levels} interval below; worse or better where the "
        "interval excludes zero, else ? for undecided"
    )
    yield "flips: examples right in float and wrong quantized / the reverse"
    yield "size: float bytes ÷ quantized bytes"
    yield (
        f"last line: float time ÷ quantized time with its {levels} interval; same is within 2 %, "
        f"? is undecided, {cell_text.FLAG} marks a timing with a flag (column latency_flags)"
    )
    yield "A/A: the float model timed against a second copy of itself: the noise of the speed-ups"
    yield "sim: simulated in float arithmetic, so without size and latency"
    yield f"{_NOTHING}: not in the sweep, not measured, or not finished yet"
