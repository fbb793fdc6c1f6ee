import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_cells import cell_of, outcome_of

from qb_cluster.dispatch.events import (
    Finish,
    Keep,
    Kill,
    Start,
    Stop,
    TaskEnded,
    Tick,
    WorkerLost,
    WorkerUp,
)
from qb_cluster.dispatch.scheduler import Scheduler

TWO_CORES = (0, 1)


class Bench:
    """A scheduler with the pool played by the test."""

    def __init__(self, plan, finished=None, kept=None, workers=2, cores=TWO_CORES):
        self.scheduler = Scheduler(plan, finished, kept)
        self.now = 0.0
        self.running = {}
        self.finished = []
        self.kept = []
        self.started = []
        self.names = iter(range(10**6))
        self.cores = cores
        self.take(Tick())
        for _ in range(workers):
            self.bring_up()

    def bring_up(self):
        self.take(WorkerUp(f"w{next(self.names)}", "node", self.cores))

    def take(self, event):
        for action in self.scheduler.on(event, self.now):
            match action:
                case Start(worker, task):
                    assert worker not in self.running, "a busy worker was given more"
                    self.running[worker] = task
                    self.started.append(task)
                case Kill(worker):
                    del self.running[worker]
                    self.bring_up()
                case Finish():
                    self.finished.append(action)
                case Keep():
                    self.kept.append(action)
        self.scheduler.check()

    def end(self, worker, status="ok"):
        self.take(TaskEnded(worker, outcome_of(self.running.pop(worker), status)))

    def lose(self, worker, cause="crashed"):
        self.running.pop(worker, None)
        self.take(WorkerLost(worker, cause, "gone"))
        self.bring_up()

    def run_down(self):
        while self.running:
            self.end(next(iter(self.running)))

    def statuses(self):
        return {finish.cell.cell_id: finish.status for finish in self.finished}


def group(name, quantized=3, **options):
    return [cell_of(name, number, **options) for number in range(quantized + 1)]


def test_every_cell_of_an_undisturbed_run_ends_ok_once():
    plan = group("a") + group("b")
    bench = Bench(plan)
    bench.run_down()
    assert bench.scheduler.is_done
    assert Counter(f.cell.cell_id for f in bench.finished) == Counter(c.cell_id for c in plan)
    assert set(bench.statuses().values()) == {"ok"}


def test_a_quantized_cell_waits_for_its_baseline():
    bench = Bench(group("a"))
    assert [task.cell.is_baseline for task in bench.started] == [True]
    bench.end(next(iter(bench.running)))
    assert all(task.baseline is not None for task in bench.started[1:])


def test_latency_runs_alone_and_after_all_quality():
    bench = Bench(group("a") + group("b"))
    bench.run_down()
    stages = [task.stage for task in bench.started]
    assert stages == sorted(stages, reverse=True)  # quality…, then latency…
    assert stages.count("latency") == 8


def test_a_worker_keeps_the_model_it_has_loaded():
    bench = Bench(group("a", 6, is_timed=False) + group("b", 6, is_timed=False))
    by_worker = {}
    while bench.running:
        worker, task = next(iter(bench.running.items()))
        by_worker.setdefault(worker, []).append(task.cell.model.label)
        bench.end(worker)
        bench.running = dict(reversed(bench.running.items()))
    changes = sum(
        one != two for models in by_worker.values() for one, two in itertools.pairwise(models)
    )
    assert changes <= 2, by_worker


def test_stages_never_get_more_cores_than_the_node_has():
    bench = Bench(group("a", 4, threads=2, is_timed=False), workers=2)
    bench.end(next(iter(bench.running)))
    assert len(bench.running) == 1
    assert next(iter(bench.running.values())).cores == TWO_CORES


def test_an_unsupported_cell_ends_without_running():
    plan = [cell_of("a", 0), cell_of("a", 1, supported=False)]
    bench = Bench(plan)
    bench.run_down()
    assert bench.statuses()[plan[1].cell_id] == "unsupported"
    assert all(task.cell is not plan[1] for task in bench.started)


@pytest.mark.parametrize("status", ["failed", "oom"])
def test_cells_of_a_failed_baseline_end_with_its_reason(status):
    plan = group("a", 2)
    bench = Bench(plan)
    while bench.running:
        bench.end(next(iter(bench.running)), status)
    assert bench.scheduler.is_done
    assert [f.status for f in bench.finished] == [status, "failed", "failed"]
    assert f"it {status}" in bench.finished[1].error


def test_a_crash_is_tried_once_more_and_then_quarantined():
    plan = group("a", 0)
    bench = Bench(plan)
    bench.lose(next(iter(bench.running)))
    assert bench.started[-1].attempt == 2
    bench.lose(next(iter(bench.running)))
    assert bench.statuses() == {plan[0].cell_id: "crashed"}
    assert bench.finished[0].attempt == 2
    assert not bench.running


def test_a_stage_out_of_memory_is_tried_once_more_alone():
    plan = group("a", 0, is_timed=False) + group("b", 4, is_timed=False)
    bench = Bench(plan)
    victim = next(w for w, t in bench.running.items() if t.cell is plan[0])
    bench.end(victim, "oom")
    while bench.running:
        worker, task = next(iter(bench.running.items()))
        if task.cell is plan[0]:
            assert len(bench.running) == 1
        bench.end(worker)
    assert set(bench.statuses().values()) == {"ok"}


def test_a_deadline_kills_the_worker_and_ends_the_cell():
    plan = group("a", 1, timeout_s=5.0)
    bench = Bench(plan)
    bench.now = bench.scheduler.next_deadline()
    bench.take(Tick())
    assert bench.statuses() == {plan[0].cell_id: "timeout", plan[1].cell_id: "failed"}


def test_a_late_result_of_a_killed_worker_changes_nothing():
    plan = group("a", 0, timeout_s=5.0)
    bench = Bench(plan)
    worker, task = next(iter(bench.running.items()))
    bench.now = 6.0
    bench.take(Tick())
    bench.take(TaskEnded(worker, outcome_of(task)))
    assert [f.status for f in bench.finished] == ["timeout"]


def test_a_latency_stage_that_dies_keeps_the_quality_outcome():
    plan = group("a", 0)
    bench = Bench(plan)
    bench.end(next(iter(bench.running)))
    bench.lose(next(iter(bench.running)))
    bench.lose(next(iter(bench.running)))
    assert bench.finished[0].status == "crashed"
    assert [outcome.stage for outcome in bench.finished[0].outcomes] == ["quality"]


def test_a_resumed_run_starts_only_what_is_left():
    plan = group("a", 3)
    first = Bench(plan)
    for _ in range(3):  # the baseline's quality and two more
        first.end(next(iter(first.running)))
    kept = {k.outcome.cell_id: (k.outcome, k.attempt) for k in first.kept}
    second = Bench(plan, finished=first.statuses(), kept=kept)
    second.run_down()
    assert second.scheduler.is_done
    done_before = {(cell_id, "quality") for cell_id in kept}
    assert not done_before & {(t.cell.cell_id, t.stage) for t in second.started}
    ended = [f.cell.cell_id for f in first.finished + second.finished]
    assert sorted(ended) == sorted(c.cell_id for c in plan)


def test_cells_added_to_a_finished_sweep_use_the_baseline_that_was_kept():
    plan = group("a", 2)
    first = Bench(plan[:2])
    first.run_down()
    kept = {k.outcome.cell_id: (k.outcome, k.attempt) for k in first.kept}
    second = Bench(plan, finished=first.statuses(), kept=kept)
    second.run_down()
    assert {t.cell.cell_id for t in second.started} == {plan[2].cell_id}


@pytest.mark.parametrize(("status", "becomes"), [("unsupported",) * 2, ("crashed", "failed")])
def test_a_grown_sweep_remembers_that_a_baseline_had_no_result(status, becomes):
    plan = group("a", 1)
    bench = Bench(plan, finished={plan[0].cell_id: status})
    assert bench.scheduler.is_done
    assert bench.statuses() == {plan[1].cell_id: becomes}
    assert f"ended {status} in an earlier run" in bench.finished[0].error


def test_a_stop_lets_what_runs_end_and_starts_nothing_new():
    bench = Bench(group("a", 5) + group("b", 5))
    bench.take(Stop())
    started = len(bench.started)
    assert not bench.scheduler.is_done
    bench.run_down()
    assert bench.scheduler.is_done
    assert len(bench.started) == started
    assert len(bench.kept) == 2


def test_the_plan_is_read_only_as_far_as_it_is_needed():
    def endless():
        number = 0
        while True:
            yield cell_of("a", number)
            number += 1

    plan = endless()
    bench = Bench(plan)
    assert next(plan).cell_id == cell_of("a", 4096).cell_id
    assert len(bench.running) == 1


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    workers=st.integers(1, 4),
    cores=st.integers(1, 4),
)
def test_whatever_happens_every_cell_ends_exactly_once(seed, groups, workers, cores):
    rng = random.Random(seed)
    plan = [
        cell_of(
            f"g{index}",
            number,
            is_timed=rng.random() < 0.5,
            threads=rng.randint(1, cores),
            supported=number == 0 or rng.random() < 0.8,
        )
        for index, quantized in enumerate(groups)
        for number in range(quantized + 1)
    ]
    bench = Bench(plan, workers=workers, cores=tuple(range(cores)))
    retired = []
    for _ in range(10_000):
        if bench.scheduler.is_done:
            break
        bench.now += rng.random() * 3
        if not bench.running:
            bench.take(Tick())
            assert bench.running, "nothing runs and the sweep is not done"
        worker = rng.choice(list(bench.running))
        task = bench.running[worker]
        match rng.randrange(8):
            case 0:
                bench.lose(worker, rng.choice(["crashed", "oom"]))
                retired.append((worker, task))
            case 1:
                bench.end(worker, rng.choice(["failed", "oom", "not_applied"]))
            case 2:
                bench.bring_up()  # a node or worker joins
            case 3:
                bench.take(Tick())
            case 4 if retired:
                late, old = rng.choice(retired)
                bench.take(TaskEnded(late, outcome_of(old)))
            case _:
                bench.end(worker)
    assert bench.scheduler.is_done
    ended = Counter(finish.cell.cell_id for finish in bench.finished)
    assert ended == Counter(cell.cell_id for cell in plan)
    tries = Counter((task.cell.cell_id, task.stage) for task in bench.started)
    assert max(tries.values(), default=0) <= 3  # one crash and one out-of-memory at most
