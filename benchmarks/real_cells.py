"""How near is a real sweep to the work that nobody can spare, and how far from other tools?

Run it alone: ``make bench``. ``qb run real_cells.yaml``, the whole process with Ray's start and
all imports, may take 1.25 times as long as the unavoidable work spread evenly over the cores; see
``unavoidable`` for what that is. Peers run the same cells through the same code, see ``one_cell``
and ``peers``; they are timed without their start-up, and every number that they find must be
ours. The goal is to be five times as fast as the best of them. Where even the unavoidable work
forbids that, the arithmetic is printed instead.

``--peer-cells N`` gives every k-th cell to the peers, about N of them, and scales by the time a
cell takes.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import one_cell
import peers
import pyarrow.parquet as pq
import unavoidable

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Cell, Ref
from qb_cluster.nodes.cores import THREAD_VARIABLES, available_cores
from qb_cluster.plan import expand
from qb_cluster.spec import load_spec

SPEC = Path(__file__).with_suffix(".yaml")
MOST_OVERHEAD = 1.25
GOAL = 5.0
PEERS: dict[str, peers.Peer] = {
    "Ray Tune, a trial a cell": peers.tune_grid,
    "Hydra multirun, joblib": peers.hydra_joblib,
    "a process a cell": peers.process_a_cell,
}
TOLERANCE = 1e-9
"""Relative; one thread and the same code give the same sums."""

Row = Mapping[str, Any]


def main() -> int:
    """Print the tables; the exit code says whether the limits held and every number agrees."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-cells", type=int, metavar="N", help="all unless given")
    asked = parser.parse_args()
    peers.let_children_import()
    cores = len(available_cores())
    with tempfile.TemporaryDirectory() as place:
        # A cache without artifacts for ours to find; trained models are there for everybody.
        os.environ["QB_CACHE"] = str(Path(place, "cache"))
        cells = [cell for cell in expand(load_spec(SPEC)) if cell.execution is not None]
        peers.fresh(train, list(dict.fromkeys(cell.model for cell in cells)))
        wall = qb_run(Path(place, "run"))
        rows = read_rows(Path(place, "run"))
        work = peers.fresh(unavoidable.measure_work, cells)
        print_work(cells, rows, work, cores)
        is_near = print_overhead(rows, wall, work.wall(cores))
        one_cell.keep_cells(cells, Path(place, "cells.pickle"))
        best, agree = run_peers(cells, rows, wall, asked.peer_cells or len(cells))
    is_far = print_factor(best, wall, work.wall(cores))
    held = is_near and is_far and agree
    print("\nevery limit held" if held else "\na limit was missed")
    return 0 if held else 1


def train(models: Sequence[Ref]) -> None:
    """Put the trained models into the cache."""
    for model in models:
        plugins.make("model", model)


def qb_run(out: Path) -> float:
    """Run the sweep as a user does; gives seconds."""
    qb = Path(sys.executable).parent / "qb"
    began = time.perf_counter()
    command = [str(qb), "run", str(SPEC), "--out", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"qb run ended with {done.returncode}: {done.stdout}{done.stderr}")
    return seconds


def read_rows(out: Path) -> dict[str, Row]:
    """Read what it wrote, by cell id."""
    return {row["cell_id"]: row for row in pq.read_table(out / "results").to_pylist()}


def print_work(
    cells: Sequence[Cell], rows: Mapping[str, Row], work: unavoidable.Work, cores: int
) -> None:
    """Print the cells and the unavoidable work."""
    statuses = Counter(rows[cell.cell_id]["status"] for cell in cells).most_common()
    backends = Counter(cell.backend.label for cell in cells).most_common()
    print(f"{len(cells)} cells: {', '.join(f'{count} {name}' for name, count in backends)}")
    print(f"they ended {', '.join(f'{status} {count}' for status, count in statuses)}\n")
    print("unavoidable, seconds of one core")
    for stage, seconds in work.stages.items():
        print(f"  {stage:<38}{seconds:>8.2f}  {'own' if stage in unavoidable.OWN else 'shared'}")
    print(f"  {'first use of the frameworks':<38}{work.first_use:>8.2f}  once a core")
    print(f"{f'evenly on {cores} cores':<40}{work.wall(cores):>8.2f}\n")


def print_overhead(rows: Mapping[str, Row], wall: float, ideal: float) -> bool:
    """Print what ours took; tells whether it is within the limit."""
    first = min(row["started_at"] for row in rows.values() if row["started_at"])
    last = max(row["finished_at"] for row in rows.values() if row["finished_at"])
    stages = (last - first).total_seconds()
    print(f"{'':<44}{'s':>8}{'× unavoidable':>16}{'limit':>8}")
    for what, seconds, limit in (
        ("qb run, the whole process", wall, f"{MOST_OVERHEAD:.2f}"),
        ("from its first stage to the end of the last", stages, ""),
    ):
        print(f"{what:<44}{seconds:>8.2f}{seconds / ideal:>16.2f}{limit:>8}")
    return wall <= MOST_OVERHEAD * ideal


def run_peers(
    cells: Sequence[Cell], rows: Mapping[str, Row], wall: float, asked: int
) -> tuple[float, bool]:
    """Print what peers take; gives the best one's seconds for all cells, and whether all agree."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    cores = len(available_cores())
    numbers = range(0, len(cells), max(1, len(cells) // asked))
    warm = unavoidable.one_of_each_kind(cells) * cores
    best, agree = math.inf, True
    print(f"\n{'peers, without their start-up':<32}{'cells':>8}{'a cell, s':>12}{'all, s':>10}")
    for name, peer in PEERS.items():
        timed = peers.fresh(peer, "one_cell:measure", numbers, warm, cores)
        total = timed.per_cell * len(cells)
        best = min(best, total)
        print(f"{name:<32}{len(timed.answers):>8}{timed.per_cell:>12.2f}{total:>10.1f}", end="")
        print(f"   ours is {total / wall:.1f} × as fast")
        for number in numbers:
            found, row = timed.answers.get(number), rows[cells[number].cell_id]
            if found is None or (differing := _differing(found, row)):
                agree = False
                print(f"  {cells[number].cell_id} differs: {differing if found else 'no answer'}")
    print("every number agrees" if agree else "NUMBERS DIFFER")
    return best, agree


def print_factor(best: float, wall: float, ideal: float) -> bool:
    """Tell whether ours is as much faster as it can be asked to be."""
    factor, possible = best / wall, best / ideal
    print(f"\nthe best peer takes {factor:.1f} times as long; the goal is {GOAL:g}")
    if factor < GOAL:
        print(
            f"the unavoidable work is {ideal:.1f} s of its {best:.1f} s ({ideal / best:.0%}): "
            f"no runner could be more than {possible:.1f} times as fast"
        )
    return factor >= GOAL or possible < GOAL


def _differing(found: peers.Answer, row: Row) -> str:
    """Name the numbers that both have and that differ."""
    pairs = {key: (value, row[key]) for key, value in found.items() if row[key] is not None}
    return ", ".join(
        f"{key} {theirs} and ours {ours}"
        for key, (theirs, ours) in pairs.items()
        if theirs is not None and not math.isclose(theirs, ours, rel_tol=TOLERANCE, abs_tol=1e-12)
    )


if __name__ == "__main__":
    sys.exit(main())
