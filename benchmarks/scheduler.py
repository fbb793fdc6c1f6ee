"""What does a decision cost on a large cluster?

Run it alone: ``make bench``. The pure scheduler with as many workers as a cluster has, eight to a
node, none of them real: cells that take five seconds each end one after another, in the order in
which they were begun. Timed is the scheduler alone: an event in, the next stage out.

Limit: a decision on the largest cluster takes at most 5 times that on a laptop, for 4,000 times
as many workers.
"""

import itertools
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import noop

from qb_cluster.contracts import Outcome, Task
from qb_cluster.dispatch.events import Event, Start, TasksEnded, Tick, WorkerUp
from qb_cluster.dispatch.scheduler import Scheduler
from qb_cluster.plan import expand
from qb_cluster.spec import load_spec

WORKERS = (2, 80, 2_000, 8_000)
PER_NODE = 8
CELLS = 40_000
STAGE_S = 5.0
MOST_RATIO = 5.0


class Cluster:
    """A scheduler and the workers that it believes in."""

    def __init__(self, workers: int, spec: Path) -> None:
        self._scheduler = Scheduler(itertools.islice(expand(load_spec(spec)), CELLS))
        self._worker = noop.Worker("")
        self._running: deque[tuple[str, tuple[Task, ...]]] = deque()
        self.spent_s = 0.0
        self.decisions = 0
        self._take(Tick())
        for number in range(workers):
            node, cores = f"node-{number // PER_NODE}", tuple(range(PER_NODE))
            self._take(WorkerUp(f"worker-{number}", node, cores))

    def run(self) -> float:
        """End every cell; gives the microseconds of a decision."""
        self.spent_s, self.decisions = 0.0, 0
        while self._running:
            worker, tasks = self._running.popleft()
            self._take(TasksEnded(worker, tuple(self._ended(task) for task in tasks)))
        if not self._scheduler.is_done:
            raise RuntimeError("the sweep was not finished")
        return 1e6 * self.spent_s / self.decisions

    def _ended(self, task: Task) -> Outcome:
        outcome = self._worker.run(task)
        return replace(outcome, finished_at=outcome.started_at + timedelta(seconds=STAGE_S))

    def _take(self, event: Event) -> None:
        began = time.perf_counter()
        actions = self._scheduler.on(event, 0.0)
        self._scheduler.next_deadline()
        self.spent_s += time.perf_counter() - began
        self.decisions += 1
        self._running += [(a.worker, a.tasks) for a in actions if isinstance(a, Start)]


def main() -> int:
    """Print the table; the exit code says whether the limit held."""
    print(f"{CELLS:,} cells of {STAGE_S:g} s each\n")
    print(f"{'workers':>10}{'nodes':>8}{'a decision, µs':>18}{'× the laptop':>15}")
    costs: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        spec = Path(place, "spec.yaml")
        spec.write_text(noop.spec_text(CELLS))
        for workers in WORKERS:
            costs.append(Cluster(workers, spec).run())
            nodes = -(-workers // PER_NODE)
            print(f"{workers:>10,}{nodes:>8,}{costs[-1]:>18.1f}{costs[-1] / costs[0]:>15.1f}")
    held = costs[-1] <= MOST_RATIO * costs[0]
    print(f"\nlimit {MOST_RATIO:g} ×: " + ("held" if held else "missed"))
    return 0 if held else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
