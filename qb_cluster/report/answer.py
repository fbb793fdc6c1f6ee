"""The answer of a run: per model and device what holds its tolerance, what is fastest, smallest."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qb_cluster.report import cell_text, verdicts
from qb_cluster.report.analysis import Analysis
from qb_cluster.report.comparison import POINTS
from qb_cluster.report.records import (
    Device,
    Place,
    Row,
    by_place,
    device_names,
    is_baseline,
    notes_of,
    records,
)

NAME: Final = "name"
FLOAT: Final = "float"
"""What a baseline has in place of a verdict."""
PARTIAL: Final = "partial"
NO_VERDICT: Final = "no verdict"
_BEST_FIRST: Final = ("within", "undecided", FLOAT, NO_VERDICT, "worse", PARTIAL)
_NEVER_PREFERRED: Final = {"worse", PARTIAL}
_MOST_UNCHANGED: Final = 2
_USUAL_DEVICE: Final[Device] = ("cpu", 1)


@dataclass(frozen=True, slots=True)
class Group:
    """One model at one place.

    Attributes:
        place: dataset, metric, device, threads.
        model: its label.
        headline: the answer in one sentence.
        rows: of the comparison, float baselines included, best first; ``NAME`` is what each is
            called.
        fastest: the fastest configuration that holds its tolerance; ``None`` where none does.
        smallest: likewise.
    """

    place: Place
    model: str
    headline: str
    rows: tuple[Row, ...]
    fastest: Row | None
    smallest: Row | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run says to who wants to ship.

    Attributes:
        title: the sweep, and what its verdicts rest on.
        groups: by place and model.
        notes: what a reader has to know besides, a line each.
    """

    title: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def answer(found: Analysis, cells: pd.DataFrame) -> Answer:
    """Answer from some or all cells of a comparison.

    Args:
        found: the analysis of the run.
        cells: rows of ``found.comparison``.
    """
    rows = records(cells)
    places = by_place([row for row in rows if row["metric"] is not None])
    for row in rows:
        if row["metric"] is None:  # nobody measured it: it goes where its model is
            near = [place for place in places if _is_near(place, row)]
            home = near[0] if near else (row["dataset"], "", row["device"], row["threads"])
            places.setdefault(home, []).append(row)
    names = device_names((place[2], place[3]) for place in places)
    groups = tuple(
        _group(place, model, own, names)
        for place in sorted(places)
        for model, own in _by_model(places[place]).items()
    )
    return Answer(_title(found), groups, tuple(_notes(found, rows)))


def kind(row: Row) -> str:
    """Give the verdict of a cell, or what it has in place of one."""
    if row["status"] != "ok":
        return str(row["status"])
    if is_baseline(row):
        return FLOAT
    return PARTIAL if row["is_partial"] else row["quality_verdict"] or NO_VERDICT


def best(group: Group, count: int) -> list[Row]:
    """Choose rows, best first: those of the headline, the Pareto front, then the rest."""
    named = [row["cell_id"] for row in (group.fastest, group.smallest) if row is not None]
    order = sorted(
        range(len(group.rows)),
        key=lambda at: (
            group.rows[at]["cell_id"] not in named,
            not group.rows[at]["pareto"] or kind(group.rows[at]) in _NEVER_PREFERRED,
            at,
        ),
    )
    return [group.rows[at] for at in sorted(order[:count])]


def counted(rows: Sequence[Row]) -> str:
    """Count rows by what they came to: ``22 within, 4 worse, 2 not_applied``."""
    counts = Counter(map(kind, rows))
    known = [name for name in _BEST_FIRST if name in counts]
    others = sorted(counts.keys() - set(known))
    return ", ".join(f"{counts[name]:,} {name}" for name in (*known, *others))


def tolerance_text(row: Row) -> str:
    """Give a row's tolerance with its unit."""
    return f"{row['tolerance']:.3g}{' pt' if row['metric_unit'] == POINTS else ''}"


def _by_model(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def _is_near(place: Place, row: Row) -> bool:
    return (place[0], place[2], place[3]) == (row["dataset"], row["device"], row["threads"])


def _rank(row: Row) -> tuple[float, ...]:
    """Order configurations: by verdict, then the faster, the smaller, with fewer bits."""
    word = kind(row)
    rank = _BEST_FIRST.index(word) if word in _BEST_FIRST else len(_BEST_FIRST)
    unknown = float("inf")
    costs = (row[name] for name in ("latency_median_ns", "artifact_bytes"))
    return (
        rank,
        *(unknown if cost is None else cost for cost in costs),
        row["weight_bits"],
        row["activation_bits"],
        unknown if row["value"] is None else -row["value"],
    )


def _group(place: Place, model: str, rows: list[Row], devices: Mapping[Device, str]) -> Group:
    names = _names(rows)
    rows = [{**row, NAME: names[row["cell_id"]]} for row in rows]
    within = [row for row in rows if kind(row) == "within"]
    timed = [row for row in within if row["latency_median_ns"] is not None]
    sized = [row for row in within if row["artifact_bytes"] is not None]
    fastest = min(timed, key=lambda row: row["latency_median_ns"], default=None)
    smallest = min(sized, key=lambda row: row["artifact_bytes"], default=None)
    device = place[2], place[3]
    where = "" if devices.keys() == {_USUAL_DEVICE} else f" ({devices[device]})"
    subject = f"{model} on {place[0]}{where}{_n(rows)}"
    said = [_held(rows)]
    if fastest is not None:
        said.append(f"fastest: {fastest[NAME]}, {_than_float(fastest)}")
    if smallest is not None:
        ratio = smallest["size_ratio"]
        by = f", {cell_text.short_size(ratio)}" if ratio else ""
        said.append(f"smallest: {smallest[NAME]}{by}")
    headline = f"{subject}: {'; '.join(said)}"
    return Group(place, model, headline, tuple(sorted(rows, key=_rank)), fastest, smallest)


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """Name configurations: backend, scheme, bits, and whatever else sets equal ones apart."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        bits = "" if is_baseline(row) else f" {row['bits']}"
        alike.setdefault(f"{row['backend']} {row['scheme']}{bits}", []).append(row)
    return {
        row["cell_id"]: " ".join([name, *_apart(row, same)])
        for name, same in alike.items()
        for row in same
    }


def _apart(row: Row, same: Sequence[Row]) -> Iterator[str]:
    """Give what sets a row apart from others of its name."""
    labels, others = verdicts.labels_of(row), [verdicts.labels_of(other) for other in same]
    for axis in ("calibration", "execution"):
        if any(other[axis] != labels[axis] for other in others):
            yield labels[axis]
    if len({other["batch_size"] for other in same}) > 1:
        yield f"batch {row['batch_size']}"


def _than_float(row: Row) -> str:
    """Say how fast the fastest is."""
    if row["speedup_verdict"] in {"faster", "slower"}:
        return f"{cell_text.short_speed(row)}"
    return "not shown to be faster than float"


def _n(rows: Sequence[Row]) -> str:
    """Say on how many examples, of how many."""
    counts = sorted({row["examples"] for row in rows if row["examples"] is not None})
    if not counts:
        return ""
    total = {row["dataset_examples"] for row in rows if row["dataset_examples"] is not None}
    of = f" of {total.pop():,}" if len(total) == 1 and total != set(counts) else ""
    many = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"
    return f", n = {many}{of}"


def _held(rows: Sequence[Row]) -> str:
    """Say how many configurations hold the tolerance, or why that is not known."""
    judged = [row for row in rows if row["quality_verdict"] is not None]
    if judged:
        tolerances = {tolerance_text(row) for row in judged}
        what = tolerances.pop() if len(tolerances) == 1 else "their tolerance"
        held = sum(kind(row) == "within" for row in judged)
        noun, verb = ("configuration", "holds") if len(judged) == 1 else ("configurations", "hold")
        if held:
            return f"{held:,} of {len(judged):,} {noun} {verb} {what}"
        return f"no configuration is shown to hold {what} ({counted(judged)})"
    ran = [row for row in rows if kind(row) == NO_VERDICT]
    if ran:
        return f"no verdict: {ran[0]['no_verdict_reason']}"
    others = [row for row in rows if not is_baseline(row)]
    return f"no verdict ({counted(others)})" if others else "only float baselines so far"


def _title(found: Analysis) -> str:
    metrics = ", ".join(sorted(found.comparison["metric"].dropna().unique()))
    begin = f"{found.run.sweep} · {metrics}" if metrics else found.run.sweep
    judged = found.comparison["quality_verdict"].notna()
    levels = sorted(found.comparison.loc[judged, "confidence"].unique())
    if not levels:
        return begin
    sure = " and ".join(f"{100 * level:g} %" for level in levels)
    count = int(judged.sum())
    over = f"{count:,} cell{'' if count == 1 else 's'}"
    holm = f", Holm over {over}" if found.judgement.adjust == "holm" else ""
    return f"{begin} · verdicts at {sure}{holm}"


def _notes(found: Analysis, rows: Sequence[Row]) -> Iterator[str]:
    missing = (found.run.planned_cells or 0) - len(found.run.planned_results)
    if missing > 0:
        yield (
            f"Unfinished: {missing:,} of {found.run.planned_cells:,} planned cells have no row "
            "yet; run `qb run` again."
        )
    undecided = [row for row in rows if kind(row) == "undecided"]
    needed = sorted(row["examples_needed"] for row in undecided if row["examples_needed"])
    if needed:
        unit = 10 ** max(0, len(str(needed[0])) - 2)
        nearest = math.ceil(needed[0] / unit) * unit  # never fewer than there were
        yield (
            f"{len(undecided):,} undecided; about {nearest:,} examples would decide the nearest "
            "(examples_needed)"
        )
    yield from (one.line() for one in found.unchanged[:_MOST_UNCHANGED])
    if (more := len(found.unchanged) - _MOST_UNCHANGED) > 0:
        yield f"{more} more ax{'is' if more == 1 else 'es'} changed nothing: --full"
    yield from _doubts(rows)
    biased = [row for row in rows if is_baseline(row) and cell_text.is_biased(row)]
    if biased:
        worst = max(biased, key=lambda row: abs(row["speedup"] - 1))
        noise = cell_text.own_noise(worst).removesuffix(" !")
        who = f"{worst['model']}, {worst['backend']}"
        yield f"timing: float differs from itself by {noise} ({who}); doubt speed-ups as small"


def _doubts(rows: Sequence[Row]) -> Iterator[str]:
    """Tell what float models' own rows note: what is compared with them is as doubtful."""
    backends: dict[tuple[str, str, str], list[str]] = {}
    for row in filter(is_baseline, rows):
        for note in notes_of(row):
            backends.setdefault((row["model"], row["dataset"], note), []).append(row["backend"])
    for (model, dataset, note), names in backends.items():
        yield f"float {model} on {dataset}, {', '.join(dict.fromkeys(names))}: {note}"
