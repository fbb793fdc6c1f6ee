"""What does the driver cost, when cells cost nothing?

Run it alone: ``make bench``. Spec, plan, scheduler, Ray pool with a worker a core, and run folder
are the product's own; only the worker does nothing, see ``noop``. Every sweep has a process of
its own. Limits: 10,000 cells a second, from all workers being up to the last row being on disk;
100 MB of growth of the driver meanwhile; 10 s from starting the process anew in a half-finished
folder to the first new cell, and 10 s for all that resuming costs beyond the remaining cells.

``--growth`` instead runs 1,000, 10,000 and 100,000 cells, five times each: the median time of a
cell, without the constant start of Ray and its workers, must not grow by more than a fifth from one
size to the next. A thousand cells are over in a tenth of a second, a third of which is the first
calls and the one commit, which nothing runs beside: they cost more each, and that is no growth.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import noop
import peers
import psutil
import pyarrow.parquet as pq

from qb_cluster.contracts import FinishedCell, Task
from qb_cluster.dispatch.events import Event, WorkerUp
from qb_cluster.dispatch.pool import Pool
from qb_cluster.dispatch.ray_pool import RayPool
from qb_cluster.dispatch.sweep import Sweep
from qb_cluster.nodes.cores import available_cores
from qb_cluster.plan import expand
from qb_cluster.spec import load_spec
from qb_cluster.store.run_folder import RunFolder

LEAST_PER_S = 10_000
MOST_GROWTH_MB = 100
MOST_RESUME_S = 10.0
MOST_GROWTH = 1.2
SIZES = (1_000, 10_000, 100_000)
ROUNDS = 5
PEERS: dict[str, tuple[peers.Peer, int]] = {
    "Ray Tune, a trial a cell": (peers.tune_grid, 300),
    "Hydra multirun, joblib": (peers.hydra_joblib, 200),
    "plain Ray tasks, one by one": (peers.ray_tasks_one_by_one, 5_000),
    "plain Ray tasks, windowed": (peers.ray_tasks_windowed, 5_000),
}
"""Peers, and how many cells each is given: their rates do not grow with more."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One sweep in a process of its own, in seconds of ``time.monotonic``.

    Attributes:
        cells: rows that it wrote.
        ready_at: when all workers were up.
        first_at: when the first quality stage was handed out.
        durable_at: when the last row was on disk.
        ended_at: when everything was closed.
        growth_mb: the most memory the driver had, beyond what it had when workers were up.
    """

    cells: int
    ready_at: float
    first_at: float
    durable_at: float
    ended_at: float
    growth_mb: float

    @property
    def per_cell_s(self) -> float:
        """Seconds a cell, without the start."""
        return (self.durable_at - self.ready_at) / self.cells


class WatchedPool:
    """A pool whose workers are all up before the sweep hears of one, and a watch on the driver."""

    def __init__(self, pool: Pool, workers: int) -> None:
        self._pool = pool
        self._heard: list[Event] = []
        while sum(isinstance(event, WorkerUp) for event in self._heard) < workers:
            self._heard += pool.wait(None)
        self._memory = psutil.Process().memory_info
        self._before = self._most = self._memory().rss
        self.ready_at = time.monotonic()
        self.first_at: float | None = None

    @property
    def growth_mb(self) -> float:
        """How much more memory the driver had at most."""
        return (self._most - self._before) / 1e6

    def look(self) -> None:
        """Look at the driver's memory."""
        self._most = max(self._most, self._memory().rss)

    @property
    def can_kill(self) -> bool:
        """Whether deadlines have a sense."""
        return self._pool.can_kill

    def start(self, worker: str, tasks: tuple[Task, ...]) -> None:
        """Hand out a call."""
        if self.first_at is None and any(task.stage == "quality" for task in tasks):
            self.first_at = time.monotonic()
        self._pool.start(worker, tasks)

    def kill(self, worker: str) -> None:
        """End a worker."""
        self._pool.kill(worker)

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Wait for events."""
        self.look()
        events, self._heard = self._heard or self._pool.wait(timeout_s), []
        return events

    def close(self) -> None:
        """End every worker."""
        self._pool.close()


def run_sweep(cells: int, folder: Path, stop_at: int | None = None) -> Ran:
    """Run a sweep of cells that do nothing, or the rest of one.

    Args:
        cells: of the plan.
        folder: has the spec, and gets the run folder.
        stop_at: rows after which it is asked to stop.
    """
    spec = load_spec(folder / "spec.yaml")
    cores = available_cores()
    watch: WatchedPool | None = None
    durable_at = 0.0

    def make_pool() -> Pool:
        nonlocal watch
        pool = RayPool(
            str(folder / "run" / "artifacts"),
            folder / "run" / "logs",
            threads=1,
            cores=len(cores),
            import_paths=[str(Path(__file__).parent)],
            make_runner=noop.Worker,
        )
        watch = WatchedPool(pool, len(cores))
        return watch

    def finished(batch: Sequence[FinishedCell]) -> None:
        nonlocal durable_at
        del batch
        durable_at = time.monotonic()
        if watch is not None:
            watch.look()
        if stop_at is not None and sweep.written.total() >= stop_at:
            sweep.stop()

    with RunFolder.open(
        folder / "run",
        sweep=spec.sweep,
        spec_text=spec.text,
        spec_digest=spec.digest,
        planned_cells=cells,
    ) as run:
        plan = itertools.islice(expand(spec), cells)
        sweep = Sweep(plan, run, make_pool, finished, print)
        sweep.run()
    if watch is None or watch.first_at is None:
        raise RuntimeError("there was nothing to run")
    return Ran(
        cells=sweep.written.total(),
        ready_at=watch.ready_at,
        first_at=watch.first_at,
        durable_at=durable_at,
        ended_at=time.monotonic(),
        growth_mb=watch.growth_mb,
    )


def main() -> int:
    """Print the tables; the exit code says whether every limit held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--growth", action="store_true", help="only compare sizes")
    asked = parser.parse_args()
    peers.let_children_import()
    held = growth() if asked.growth else cost(asked.cells)
    print("\nevery limit held" if held else "\na limit was missed")
    return 0 if held else 1


def cost(cells: int) -> bool:
    """Measure a whole sweep, one that is resumed half-way, and the peers."""
    with tempfile.TemporaryDirectory() as place:
        whole, halved = _prepare(Path(place, "whole"), cells), _prepare(Path(place, "half"), cells)
        ran = peers.fresh(run_sweep, cells, whole)
        half = peers.fresh(run_sweep, cells, halved, stop_at=cells // 2)
        began = time.monotonic()
        rest = peers.fresh(run_sweep, cells, halved)
        missing = sum(not _is_whole(folder, cells) for folder in (whole, halved))
    rate = 1 / ran.per_cell_s
    overhead = rest.ended_at - began - rest.cells * ran.per_cell_s
    limits = (
        ("cells a second", rate, "≥", LEAST_PER_S),
        ("driver's memory growth, MB", ran.growth_mb, "≤", MOST_GROWTH_MB),
        ("resume: first new cell after, s", rest.first_at - began, "≤", MOST_RESUME_S),
        ("resume: all it costs, s", overhead, "≤", MOST_RESUME_S),
        ("folders without each row once", missing, "≤", 0),
    )
    print(f"{cells:,} cells that do nothing, {len(available_cores())} cores")
    print(f"resumed after {half.cells:,} of them\n")
    print(f"{'':<34}{'measured':>10}{'limit':>10}")
    for name, value, sign, limit in limits:
        shown = f"{value:,.1f}" if value < 1_000 else f"{value:,.0f}"
        print(f"{name:<34}{shown:>10}{f'{sign} {limit:,.0f}':>10}")
    _compare_with_peers(rate)
    return all(
        value >= limit if sign == "≥" else value <= limit for _, value, sign, limit in limits
    )


def growth() -> bool:
    """Measure what a cell costs in small and in large sweeps."""
    print(f"{'cells':>10}{'a cell, µs':>14}{'memory growth, MB':>20}")
    costs = []
    for cells in SIZES:
        rounds = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as place:
                rounds.append(peers.fresh(run_sweep, cells, _prepare(Path(place), cells)))
        costs.append(statistics.median(ran.per_cell_s for ran in rounds))
        memory = max(ran.growth_mb for ran in rounds)
        print(f"{cells:>10,}{1e6 * costs[-1]:>14.1f}{memory:>20.1f}")
    growth = max(larger / smaller for smaller, larger in itertools.pairwise(costs))
    print(f"\nten times the cells cost {growth:.2f} times as much each, at most {MOST_GROWTH:.2f}")
    return growth <= MOST_GROWTH


def _prepare(folder: Path, cells: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(noop.spec_text(cells))
    return folder


def _is_whole(folder: Path, cells: int) -> bool:
    """Tell whether the folder has one row, and an ok one, for each cell of the plan."""
    rows = pq.read_table(folder / "run" / "results", columns=["cell_id", "status"])
    spec = load_spec(folder / "spec.yaml")
    planned = [cell.cell_id for cell in itertools.islice(expand(spec), cells)]
    is_ok = rows["status"].unique().to_pylist() == ["ok"]
    return is_ok and sorted(rows["cell_id"].to_pylist()) == sorted(planned)


def _compare_with_peers(rate: float) -> None:
    cores = len(available_cores())
    print(f"\n{'the same with':<34}{'cells':>10}{'cells/s':>10}{'ours is':>16}")
    for name, (peer, cells) in PEERS.items():
        timed = peers.fresh(peer, "noop:nothing", range(cells), [], cores)
        if len(timed.answers) < cells:
            raise RuntimeError(f"{name} lost {cells - len(timed.answers)} cells")
        own = 1 / timed.per_cell
        print(f"{name:<34}{cells:>10,}{own:>10,.0f}{f'{rate / own:,.0f} × as fast':>16}")


if __name__ == "__main__":
    sys.exit(main())
