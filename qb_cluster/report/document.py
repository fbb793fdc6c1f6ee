"""The report before it is rendered: titles, lines and tables of plain text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qb_cluster.contracts import MEASURED
from qb_cluster.report import cell_text, same
from qb_cluster.report.analysis import Analysis
from qb_cluster.report.bits import DB_PER_BIT
from qb_cluster.report.cell_text import NOTHING
from qb_cluster.report.comparison import baselines, in_order, quantized
from qb_cluster.report.records import Row, by_place, columns, notes_of, records, where
from qb_cluster.report.sections import (
    agreement_tables,
    bits_tables,
    devices_tables,
    layers_tables,
)
from qb_cluster.report.table import Table
from qb_cluster.store.reading import StoredRun

_MOST_REASONS: Final = 20


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


def build(found: Analysis) -> Document:
    """Write the report of a run."""
    run = found.run
    return Document(
        title=f"Sweep {run.sweep}: quantized against float",
        summary=tuple(_summary(run)),
        tables=(
            *_comparison_tables(found.comparison),
            *devices_tables(found.devices),
            *agreement_tables(found.agreement),
            *bits_tables(found.bits),
            *layers_tables(found.layers),
            *same.tables(found.comparison, found.unchanged),
            *_reason_tables(run.results),
        ),
        legend=tuple(_legend(found)),
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


def _comparison_tables(comparison: pd.DataFrame) -> Iterator[Table]:
    floats = by_place(records(baselines(comparison)))
    cells = by_place(records(quantized(comparison)))
    for place in sorted({*floats, *cells}, key=lambda place: tuple(map(str, place))):
        ours = floats.get(place, [])
        if ours:
            yield _baseline_table(f"float baselines · {where(place)}{_n(ours)}", place[1], ours)
        by_scheme: dict[str, list[Row]] = {}
        for row in cells.get(place, []):
            by_scheme.setdefault(row["scheme"], []).append(row)
        for scheme, group in sorted(by_scheme.items()):
            change = f"change of {cell_text.unit(group[0])}"
            yield _grid(f"{scheme} · {change} · {where(place)}{_n(group)}", group)


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
            cell_text.value(row),
            cell_text.duration(row["latency_median_ns"]) or NOTHING,
            cell_text.own_noise(row) or NOTHING,
            cell_text.size(row["artifact_bytes"]) or NOTHING,
        )
        for row in floats
    )
    return Table(
        title, ("model", "backend", metric, "latency", "timing noise", "size"), tuple(rows)
    )


def _grid(title: str, cells: Sequence[Row]) -> Table:
    """Make a table with a row a model and backend, and a column a bit-width."""
    widths = columns(cells)
    slots: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in cells:
        by_bits = slots.setdefault((row["model"], row["backend"]), {})
        by_bits.setdefault(row["bits"], []).append(row)
    rows = (
        (
            f"{model}\n{backend}",
            *(
                cell_text.slot(by_bits[bits], cell_text.cell) if bits in by_bits else NOTHING
                for bits in widths
            ),
        )
        for (model, backend), by_bits in slots.items()
    )
    return Table(title, ("model\nbackend", *widths), tuple(rows), is_grid=True)


def _reason_tables(results: pd.DataFrame) -> Iterator[Table]:
    """List what went wrong, and what was remarkable though it went well."""
    bad, remarkable = [], []
    for row in records(in_order(results)):
        if row["status"] != "ok":
            lines = (row["error"] or "").splitlines()
            bad.append((row["status"], lines[0] if lines else "no reason given", row))
        if row["status"] in MEASURED:
            remarkable += [(row["status"], note, row) for note in notes_of(row)]
    if bad:
        yield _reasons("not ok", "reason", bad)
    if remarkable:
        yield _reasons("notes on cells that ran", "note", remarkable)


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


def _legend(found: Analysis) -> Iterator[str]:
    results = found.run.results
    levels = " / ".join(f"{100 * level:g} %" for level in sorted(results["confidence"].unique()))
    yield (
        "first line: quantized minus float on the same examples (shares in percentage points; "
        f"negative is a loss), its verdict, and its {levels} interval below"
    )
    yield (
        "within: the loss is shown to be smaller than the tolerance; worse: larger; undecided: "
        "neither; partial: the cell quantized only a part of the model, so it has no verdict"
    )
    yield "flips: examples right in float and wrong quantized (lost), and the reverse (gained)"
    yield "size: so many times smaller than the float artifact, unless it says larger"
    yield (
        f"last line: speed against float, ± half of its {levels} interval; same speed is within "
        f"2 %, ? is undecided, {cell_text.FLAG} marks a timing with a flag (column latency_flags)"
    )
    yield (
        "timing noise: how far the float model may be from a second copy of itself; ! where it is "
        "told from it, so that speed-ups as small mean nothing"
    )
    yield "sim: simulated in float arithmetic, so without size and latency"
    if (results["status"] == "kernel_mismatch").any():
        yield (
            "kernel_mismatch: the outputs are far from those of the same artifact by reference "
            "arithmetic (without that, of the scheme simulated); SQNR against float of the kernel, "
            "and of the simulation (sim). What the scheme costs is unknown"
        )
    if len(found.devices):
        yield (
            "by device: the metric, its change from float on the same device, the median time of "
            "one example, and float time ÷ quantized time on the same device"
        )
    if len(found.agreement):
        yield (
            "agreement: share of examples with the same largest output, and SQNR with the first "
            "of the pair as reference; in agreement.parquet for each pair, float included"
        )
    if found.bits:
        yield (
            f"SQNR per bit: slope of the line of least squares ± its standard error; a uniform "
            f"quantizer gains {DB_PER_BIT:.2f} dB a bit as long as it makes all the noise"
        )
    if len(found.layers):
        yield (
            "layers: SQNR of the model's outputs with only this layer quantized, and with all "
            "but it; SQNR of its own weight, what a Gaussian weight would have, and by how much "
            "it is worse than that"
        )
    yield f"{NOTHING}: not in the sweep, not measured, or not finished yet"
