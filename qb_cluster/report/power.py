"""Before a run: what so many examples can show, and how many the tolerance would need."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tabulate import tabulate

from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Ref
from qb_cluster.errors import CellError, RunFolderError
from qb_cluster.evaluation.noninferiority import detectable, examples_for
from qb_cluster.spec import SweepSpec
from qb_cluster.store.manifest import MANIFEST
from qb_cluster.store.reading import read_columns

DISCORDANCES: Final = (0.01, 0.02, 0.05, 0.10)
"""Shares of the examples that are right in one arm alone, from hardly any to many."""

POWER: Final = 0.8
_SEEN: Final = ("model", "dataset", "status", "examples", "flips_worse", "flips_better")


@dataclass(frozen=True, slots=True)
class Size:
    """How many examples a dataset gives.

    Attributes:
        examples: that are evaluated; ``None`` where it cannot be loaded here.
        total: of the whole dataset.
        problem: why it cannot be loaded.
    """

    examples: int | None
    total: int | None
    problem: str = ""


def size_of(dataset: Ref, at_most: int | None) -> Size:
    """Load a dataset, and count.

    Args:
        dataset: its name.
        at_most: evaluation examples used at most; ``None`` is all.
    """
    try:
        loaded = load_dataset(dataset)
    except CellError as error:
        return Size(None, None, str(error).partition("\n")[0])
    return Size(len(loaded.evaluation(at_most).ids), loaded.total)


def discordance_seen(runs: Path) -> dict[tuple[str, str], float]:
    """Give the share of discordant examples that earlier runs saw, by model and dataset.

    Args:
        runs: a folder of run folders; what in it is none, or cannot be read, is passed over.

    Returns:
        The median over the quantized cells that are ok and whose metric is right or wrong.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for manifest in sorted(runs.glob(f"*/{MANIFEST}")):
        with suppress(RunFolderError):
            cells = read_columns(manifest.parent, _SEEN)
            cells = cells[(cells["status"] == "ok") & cells["flips_worse"].notna()]
            shares = (cells["flips_worse"] + cells["flips_better"]) / cells["examples"]
            for model, dataset, share in zip(cells["model"], cells["dataset"], shares, strict=True):
                found.setdefault((model, dataset), []).append(float(share))
    return {key: sorted(shares)[len(shares) // 2] for key, shares in found.items()}


def power_lines(
    spec: SweepSpec,
    judged: int,
    sizes: Mapping[str, Size],
    seen: Mapping[tuple[str, str], float],
) -> Iterator[str]:
    """Say what the examples of a sweep can show.

    Args:
        spec: the sweep.
        judged: how many cells of its plan may get a verdict.
        sizes: of its datasets, by label.
        seen: see ``discordance_seen``.
    """
    metric, confidence = spec.measure.metric.label, spec.measure.confidence
    if metric not in spec.judgement.shares:
        yield f"What n can show of {metric} depends on its spread: known after a run (qb report)."
        return
    tolerance = spec.judgement.tolerance(metric, {})
    margin = None if tolerance is None else tolerance.margin(1.0)
    models = {model.label for product in spec.products for model in product.model}
    rows = []
    for label, size in sizes.items():
        earlier = [
            (share, f"{model}, earlier runs")
            for (model, dataset), share in sorted(seen.items())
            if model in models and dataset == label and share > 0
        ]
        for discordance, why in (*((share, "") for share in DISCORDANCES), *earlier):
            change = _change(discordance, size.examples, confidence)
            needed = ""
            if margin is not None:
                least = _fewest(1 - confidence, margin)
                needed = f"{max(least, examples_for(discordance, margin, confidence, POWER)):,}"
            rows.append((label, f"{100 * discordance:.2g} %", why, change, needed))
    asked = "" if tolerance is None else f"n to show {tolerance}"
    yield (
        f"What n can show: change of {metric}, paired, {100 * confidence:g} % confidence, "
        f"{100 * POWER:g} % power"
    )
    for label, size in sizes.items():
        n = size.problem if size.examples is None else f"{size.examples:,} of {size.total:,}"
        yield f"{label}: n = {n}" if size.examples is not None else f"{label}: n unknown: {n}"
    header = ("dataset", "discordant", "seen in", "smallest change shown", asked)
    yield str(tabulate(rows, headers=header, tablefmt="plain", disable_numparse=True))
    if margin is not None and judged:
        yield from _first_verdict(spec, judged, margin)


def _change(discordance: float, n: int | None, confidence: float) -> str:
    """Give the smallest change that n examples show: none where it would take more flips."""
    if n is None:
        return "n unknown"
    change = detectable(discordance, n, confidence, POWER)
    return f"{100 * change:.2f} pt" if change <= discordance else "none"


def _fewest(level: float, margin: float) -> int:
    """Give the n from which on no flip at all holds a margin: (1 - margin)^n comes to level."""
    return math.ceil(math.log(level) / math.log1p(-margin))


def _first_verdict(spec: SweepSpec, judged: int, margin: float) -> Iterator[str]:
    """Say below which n nothing can hold the tolerance."""
    is_adjusted = spec.judgement.adjust == "holm" and judged > 1
    level = (1 - spec.measure.confidence) / (judged if is_adjusted else 1)
    fewest = _fewest(level, margin)
    over = f" with Holm over {judged:,} cells" if is_adjusted else ""
    yield f"No first verdict 'within'{over} below n = {fewest:,}, even if no example flips."
