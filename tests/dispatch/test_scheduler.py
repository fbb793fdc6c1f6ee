import itertools
import random
from collections import Counter, deque
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_cells import CONTENT, NOW, cell_of, key_of, outcome_of

from qb_cluster.contracts import Content, Ref, SshBoard
from qb_cluster.dispatch.admission import Past
from qb_cluster.dispatch.events import (
    BoardGivenUp,
    Finish,
    Keep,
    Kill,
    Notice,
    Start,
    Stop,
    TasksEnded,
    Tick,
    Waiting,
    WorkerLost,
    WorkerUp,
)
from qb_cluster.dispatch.pace import MOST_TO_A_CALL
from qb_cluster.dispatch.scheduler import Scheduler

TWO_CORES = (0, 1)


class Bench:
    """A scheduler with the pool played by the test."""

    def __init__(self, plan, past=None, workers=2, cores=TWO_CORES, took_s=1.0, **up):
        self.scheduler = Scheduler(plan, past)
        self.now = 0.0
        self.running = {}  # the calls that each busy worker has in hand
        self.finished = []
        self.kept = []
        self.started = []
        self.notices = []
        self.names = iter(range(10**6))
        self.cores = cores
        self.took_s = took_s
        self.content = CONTENT
        self.up = up
        self.take(Tick())
        for _ in range(workers):
            self.bring_up()

    def bring_up(self, node="node", **up):
        name = f"w{next(self.names)}"
        self.take(WorkerUp(name, node, self.cores, **(self.up | up)))
        return name

    def take(self, event):
        for action in self.scheduler.on(event, self.now):
            match action:
                case Start(worker, tasks):
                    self.running.setdefault(worker, deque()).append(tasks)
                    self.started += tasks
                case Kill(worker):
                    del self.running[worker]
                    self.bring_up()
                case Finish(ended):
                    self.finished.append(ended)
                case Keep():
                    self.kept.append(action)
                case Notice(text):
                    self.notices.append(text)
        self.scheduler.check()

    def tasks(self, worker):
        return self.running[worker][0]

    def busy(self):
        """The first task of each call that runs now, by worker."""
        return {worker: calls[0][0] for worker, calls in self.running.items()}

    def end(self, worker, status="ok"):
        tasks = self.running[worker].popleft()
        if not self.running[worker]:
            del self.running[worker]
        ended = [
            outcome_of(
                task,
                status,
                content=self.content,
                took_s=self.took_s,
                at=NOW + timedelta(seconds=self.took_s * index),
            )
            for index, task in enumerate(tasks)
        ]
        self.take(TasksEnded(worker, tuple(ended)))

    def lose(self, worker, cause="crashed"):
        self.running.pop(worker, None)
        self.take(WorkerLost(worker, cause, "gone", f"{worker} was on a host"))
        self.bring_up()

    def run_down(self):
        while self.running:
            self.end(next(iter(self.running)))

    def statuses(self):
        return {ended.cell.cell_id: ended.status for ended in self.finished}

    def past(self, **options):
        """What this run leaves for the next one."""
        keys = {}
        for ended in self.finished:
            hardware = self.up.get("fingerprint") if ended.cell.is_timed else None
            if ended.status == "ok":
                keys[ended.cell.cell_id] = key_of(ended.cell, self.content, hardware)
        kept = {k.outcome.cell_id: (k.outcome, k.attempt) for k in self.kept}
        return Past(self.statuses(), kept, keys, key_of, **options)


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
        worker, task = next(iter(bench.busy().items()))
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
    assert next(iter(bench.busy().values())).cores == TWO_CORES


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
    victim = next(w for w, t in bench.busy().items() if t.cell is plan[0])
    bench.end(victim, "oom")
    while bench.running:
        worker, task = next(iter(bench.busy().items()))
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
    worker, task = next(iter(bench.busy().items()))
    bench.now = 6.0
    bench.take(Tick())
    bench.take(TasksEnded(worker, (outcome_of(task),)))
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
    past = first.past()
    second = Bench(plan, past)
    second.run_down()
    assert second.scheduler.is_done
    done_before = {(cell_id, "quality") for cell_id in past.kept}
    assert not done_before & {(t.cell.cell_id, t.stage) for t in second.started}
    ended = [f.cell.cell_id for f in first.finished + second.finished]
    assert sorted(ended) == sorted(c.cell_id for c in plan)


def test_cells_added_to_a_finished_sweep_use_the_baseline_that_was_kept():
    plan = group("a", 2)
    first = Bench(plan[:2])
    first.run_down()
    second = Bench(plan, first.past())
    second.run_down()
    ran = {(t.cell.cell_id, t.stage) for t in second.started if t.stage != "content"}
    assert {cell_id for cell_id, _ in ran} == {plan[2].cell_id}


@pytest.mark.parametrize(("status", "becomes"), [("unsupported",) * 2, ("crashed", "failed")])
def test_a_grown_sweep_remembers_that_a_baseline_had_no_result(status, becomes):
    plan = group("a", 1)
    bench = Bench(plan, Past({plan[0].cell_id: status}))
    assert bench.scheduler.is_done
    assert bench.statuses() == {plan[1].cell_id: becomes}
    assert f"ended {status} in an earlier run" in bench.finished[0].error


def test_a_finished_sweep_is_checked_by_content_and_nothing_else_runs():
    plan = group("a", 3, is_timed=False) + group("b", 3)
    first = Bench(plan, fingerprint="this cpu")
    first.run_down()
    second = Bench(plan, first.past(), fingerprint="this cpu")
    second.run_down()
    assert second.scheduler.is_done
    assert Counter(task.stage for task in second.started) == {"content": 2}
    assert second.finished == []
    assert second.notices == []


def test_cells_whose_content_changed_run_again_and_the_user_is_told_what_changed():
    plan = group("a", 3, is_timed=False) + group("b", 2, is_timed=False)
    first = Bench(plan)
    first.run_down()
    second = Bench(plan, first.past())
    changed = Content("retrained", CONTENT.dataset, CONTENT.backend, CONTENT.metric)
    while second.running:
        worker, task = next(iter(second.busy().items()))
        second.content = changed if task.cell.model.label == "model-a" else CONTENT
        second.end(worker)
    assert second.scheduler.is_done
    assert set(second.statuses()) == {cell.cell_id for cell in plan[:4]}
    assert len(second.notices) == 1
    assert "'model-a'" in second.notices[0]
    assert "model changed" in second.notices[0]


@pytest.mark.parametrize("how", ["failed", "lost"])
def test_rows_whose_content_cannot_be_checked_stay_and_the_user_is_told(how):
    plan = group("a", 2, is_timed=False)
    first = Bench(plan)
    first.run_down()
    second = Bench(plan, first.past())
    if how == "failed":
        second.end(next(iter(second.running)), "failed")
    else:
        second.lose(next(iter(second.running)))
        second.lose(next(iter(second.running)))
    assert second.scheduler.is_done
    assert second.finished == []
    assert "cannot be checked" in second.notices[0]


def test_a_changed_scheme_runs_its_cells_again_but_not_the_baseline():
    plan = group("a", 2, is_timed=False)
    first = Bench(plan)
    first.run_down()
    past = first.past()
    keys = {**past.keys, plan[1].cell_id: "of an older scheme"}
    second = Bench(plan, Past(past.finished, past.kept, keys, key_of))
    second.run_down()
    assert [(t.cell, t.stage) for t in second.started[1:]] == [(plan[1], "quality")]
    assert "code or settings changed" in second.notices[0]


def test_on_other_hardware_only_latency_runs_again():
    plan = group("a", 2)
    first = Bench(plan, fingerprint="old cpu")
    first.run_down()
    second = Bench(plan, first.past(), fingerprint="new cpu")
    second.run_down()
    assert Counter(task.stage for task in second.started) == {"content": 1, "latency": 3}
    assert all(len(ended.outcomes) == 2 for ended in second.finished)
    third = Bench(plan, first.past(), fingerprint="old cpu")
    third.bring_up("another node", fingerprint="new cpu")
    third.run_down()
    assert third.finished == []


def test_a_latency_stage_that_failed_is_not_taken_for_changed_content():
    plan = group("a", 0)
    first = Bench(plan, fingerprint="cpu")
    first.end(next(iter(first.running)))
    first.end(next(iter(first.running)), "failed")
    past = first.past()
    keys = {plan[0].cell_id: key_of(plan[0], CONTENT, None)}
    second = Bench(plan, Past(past.finished, past.kept, keys, key_of), fingerprint="cpu")
    second.run_down()
    assert second.finished == []
    assert second.notices == []


def test_a_rerun_takes_what_is_asked_for_and_nothing_else():
    plan = group("a", 3, is_timed=False)
    first = Bench(plan)
    while first.running:
        worker, task = next(iter(first.busy().items()))
        first.end(worker, "failed" if task.cell is plan[2] else "ok")
    second = Bench(plan, first.past(is_rerun=lambda cell, status: status == "failed"))
    second.run_down()
    assert second.statuses() == {plan[2].cell_id: "ok"}


def test_a_rerun_of_a_failed_baseline_brings_its_cells_back():
    plan = group("a", 2, is_timed=False)
    first = Bench(plan)
    first.end(next(iter(first.running)), "failed")
    second = Bench(plan, first.past(is_rerun=lambda cell, status: status == "failed"))
    second.run_down()
    assert set(second.statuses().values()) == {"ok"}
    assert len(second.finished) == 3


def test_a_stop_lets_what_runs_end_and_starts_nothing_new():
    bench = Bench(group("a", 5) + group("b", 5))
    bench.take(Stop())
    started = len(bench.started)
    assert not bench.scheduler.is_done
    bench.run_down()
    assert bench.scheduler.is_done
    assert len(bench.started) == started
    assert len(bench.kept) == 2


def test_short_stages_go_several_to_a_call_and_two_calls_in_hand():
    bench = Bench(group("a", 2000, is_timed=False), took_s=0.001)
    bench.end(next(iter(bench.running)))  # the baseline
    for worker in list(bench.running):
        bench.end(worker)  # the first of each worker: how long they take is known now
    calls = list(bench.running.values())
    assert [len(in_hand) for in_hand in calls] == [2, 2]
    assert {len(call) for in_hand in calls for call in in_hand} == {MOST_TO_A_CALL}
    bench.run_down()
    assert bench.scheduler.is_done
    assert len(bench.finished) == 2001


def test_long_stages_go_one_to_a_call_and_one_call_in_hand():
    bench = Bench(group("a", 20, is_timed=False), took_s=5.0)
    while bench.running:
        assert all(len(in_hand) == 1 for in_hand in bench.running.values())
        assert all(len(bench.tasks(worker)) == 1 for worker in bench.running)
        bench.end(next(iter(bench.running)))
    assert bench.scheduler.is_done


def test_near_the_end_every_worker_gets_a_share():
    bench = Bench(group("a", 40, is_timed=False), workers=2, took_s=0.0001)
    while bench.running:
        bench.end(next(iter(bench.running)))
        sizes = [len(call) for in_hand in bench.running.values() for call in in_hand]
        assert max(sizes, default=0) <= 20


def test_a_call_of_several_that_crashes_is_tried_one_by_one_and_only_the_guilty_counts():
    plan = group("a", 30, is_timed=False)
    poison = plan[7]
    bench = Bench(plan, workers=1, took_s=0.001)
    while bench.running:
        worker = next(iter(bench.running))
        tasks = bench.tasks(worker)
        if any(task.cell is poison for task in tasks):
            bench.lose(worker)
        else:
            bench.end(worker)
    assert bench.scheduler.is_done
    statuses = bench.statuses()
    assert statuses.pop(poison.cell_id) == "crashed"
    assert set(statuses.values()) == {"ok"}
    [quarantined] = [ended for ended in bench.finished if ended.cell is poison]
    assert quarantined.attempt == 2
    assert quarantined.story.count("was on a host") == 2
    assert all(ended.attempt == 1 for ended in bench.finished if ended.cell is not poison)


def test_a_call_that_was_not_begun_when_its_worker_died_is_no_suspect():
    bench = Bench(group("a", 300, is_timed=False), workers=1, took_s=0.001)
    bench.end(next(iter(bench.running)))
    bench.end(next(iter(bench.running)))
    worker = next(iter(bench.running))
    suspects, innocent = bench.running[worker]
    bench.lose(worker)
    alone = []
    while len(alone) < len(suspects):
        worker = next(iter(bench.running))
        assert len(bench.tasks(worker)) == 1
        alone += [task.cell for task in bench.tasks(worker)]
        bench.end(worker)
    assert alone == [task.cell for task in suspects]
    assert set(bench.tasks(next(iter(bench.running)))) & set(innocent)


def test_a_lost_node_is_forgiven_three_times():
    plan = group("a", 0, is_timed=False)
    bench = Bench(plan)
    for attempt in (1, 2, 3, 4):
        assert bench.busy()[next(iter(bench.running))].attempt == attempt
        bench.lose(next(iter(bench.running)), "node_lost")
    assert bench.statuses() == {plan[0].cell_id: "crashed"}
    assert "4 times" in bench.finished[0].error
    assert bench.finished[0].story.count("was on a host") == 4


def test_a_crash_and_a_lost_node_are_counted_apart():
    plan = group("a", 0, is_timed=False)
    bench = Bench(plan)
    for cause in ("node_lost", "crashed", "node_lost", "oom"):
        bench.lose(next(iter(bench.running)), cause)
    bench.run_down()
    assert bench.statuses() == {plan[0].cell_id: "ok"}


def test_a_timeout_is_tried_again_as_often_as_the_spec_says():
    plan = group("a", 0, timeout_s=5.0, timeout_retries=1, is_timed=False)
    bench = Bench(plan)
    for attempt in (1, 2):
        assert bench.busy()[next(iter(bench.running))].attempt == attempt
        bench.now = bench.scheduler.next_deadline()
        bench.take(Tick())
    assert bench.statuses() == {plan[0].cell_id: "timeout"}


def test_a_stage_that_hangs_in_a_call_of_several_is_found_and_the_others_end():
    plan = group("a", 30, is_timed=False)
    hangs = plan[9]
    bench = Bench(plan, workers=1, took_s=0.001)
    while bench.running:
        worker = next(iter(bench.running))
        if any(task.cell is hangs for task in bench.tasks(worker)):
            bench.now = bench.scheduler.next_deadline()
            bench.take(Tick())
        else:
            bench.end(worker)
    statuses = bench.statuses()
    assert statuses.pop(hangs.cell_id) == "timeout"
    assert set(statuses.values()) == {"ok"}


def test_a_second_call_has_its_own_time():
    bench = Bench(group("a", 300, is_timed=False, timeout_s=10.0), workers=1, took_s=0.001)
    bench.end(next(iter(bench.running)))
    bench.end(next(iter(bench.running)))
    bench.now = 9.0
    bench.end(next(iter(bench.running)))
    assert bench.scheduler.next_deadline() == 19.0


def test_a_cell_runs_only_on_a_node_with_the_labels_of_its_device():
    rpi = (("qb/board", "rpi5"),)
    plan = group("a", 2, labels=rpi) + group("b", 2)
    bench = Bench(plan, workers=1)
    assert {task.cell.model.label for task in bench.busy().values()} == {"model-b"}
    bench.run_down()
    assert {device.labels for device in bench.scheduler.stranded()} == {rpi}
    bench.bring_up("board", labels={"qb/board": "rpi5"})
    assert bench.scheduler.stranded() == {}
    bench.run_down()
    assert bench.scheduler.is_done
    assert len(bench.finished) == len(plan)


def test_a_node_that_joins_gets_work_at_once():
    bench = Bench(group("a", 20, is_timed=False))
    bench.end(next(iter(bench.running)))
    newcomer = bench.bring_up("another node")
    assert newcomer in bench.running


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


def play(bench, rng, retired):
    """Let one thing happen to a worker that runs, or to one that is long gone."""
    worker = rng.choice(list(bench.running))
    tasks = bench.tasks(worker)
    match rng.randrange(9):
        case 0:
            bench.lose(worker, rng.choice(["crashed", "oom", "node_lost"]))
            retired.append((worker, tasks))
        case 1:
            bench.end(worker, rng.choice(["failed", "oom", "not_applied"]))
        case 2:
            bench.bring_up(rng.choice(["node", "another node"]))  # a node or worker joins
        case 3:
            bench.take(Tick())
        case 4 if retired:
            late, old = rng.choice(retired)
            bench.take(TasksEnded(late, tuple(map(outcome_of, old))))
        case 5 if retired:
            late, _ = rng.choice(retired)
            bench.take(WorkerLost(late, "crashed", "again"))
        case _:
            bench.end(worker)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    workers=st.integers(1, 4),
    cores=st.integers(1, 4),
)
def test_whatever_happens_every_cell_ends_exactly_once(seed, groups, workers, cores):
    rng = random.Random(seed)
    threads = [rng.randint(1, cores) for _ in groups]
    plan = [
        cell_of(
            f"g{index}",
            number,
            is_timed=rng.random() < 0.5,
            threads=threads[index],
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
        bench.took_s = rng.choice([0.001, 0.1, 5.0])
        if not bench.running:
            bench.take(Tick())
            assert bench.running, "nothing runs and the sweep is not done"
        play(bench, rng, retired)
    assert bench.scheduler.is_done
    ended = Counter(ended.cell.cell_id for ended in bench.finished)
    assert ended == Counter(cell.cell_id for cell in plan)
    most = {"crashed": 2, "timeout": 1, "oom": 2}
    for finished in bench.finished:
        assert finished.attempt <= 1 + 1 + 1 + 3  # a crash, out of memory, three lost nodes
        if finished.status in most:
            assert finished.attempt >= most[finished.status]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), quantized=st.integers(0, 60), stops=st.integers(1, 4))
def test_however_often_a_run_is_stopped_and_resumed_every_cell_has_one_row(seed, quantized, stops):
    rng = random.Random(seed)
    plan = [
        cell_of(
            "a", number, is_timed=rng.random() < 0.3, supported=number == 0 or rng.random() < 0.9
        )
        for number in range(quantized + 1)
    ]
    past, rows, quality_runs = Past(key_of=key_of), Counter(), Counter()
    for stop in range(stops + 1):
        bench = Bench(plan, past, took_s=rng.choice([0.001, 1.0]), fingerprint="cpu")
        steps = rng.randrange(20) if stop < stops else 10**6
        while bench.running and steps:
            bench.end(rng.choice(list(bench.running)))
            steps -= 1
        if rng.random() < 0.5:  # else it is killed
            bench.take(Stop())
            bench.run_down()
        else:
            bench.running.clear()
        left = bench.past()
        past = Past(
            {**past.finished, **left.finished},
            {**past.kept, **left.kept},
            {**past.keys, **left.keys},
            key_of,
        )
        rows.update(ended.cell.cell_id for ended in bench.finished)
        quality_runs.update(ended.cell.cell_id for ended in bench.finished if ended.attempt)
    if stops:
        final = Bench(plan, past, fingerprint="cpu")
        final.run_down()
        rows.update(ended.cell.cell_id for ended in final.finished)
    assert rows == Counter(cell.cell_id for cell in plan)


BOARD = SshBoard("zero")


def where(bench):
    """Which stages ran on the board and which on the node, by the worker's name."""
    return {task.stage: worker for worker, task in bench.busy().items()}


def test_a_node_prepares_what_a_board_runs_and_times():
    bench = Bench(group("a", ssh=BOARD), workers=1)
    board = bench.bring_up("board", board=BOARD)
    while bench.running:
        for worker, calls in bench.running.items():
            for task in calls[0]:
                assert (worker == board) == (task.stage in {"quality", "latency"})
                assert (task.prepared is not None) == (task.stage == "quality")
        bench.end(next(iter(bench.running)))
    assert bench.scheduler.is_done
    assert set(bench.statuses().values()) == {"ok"}
    stages = Counter(task.stage for task in bench.started)
    assert stages == {"prepare": 4, "quality": 4, "latency": 4}


def test_a_node_with_a_runtime_alone_prepares_nothing_and_a_converter_runs_nothing_of_it():
    runs, makes = (("qb/board", "rpi5"),), (("role", "converter"),)
    bench = Bench(group("a", labels=runs, prepared_on=makes), workers=0)
    pi = bench.bring_up("pi", labels=dict(runs))
    assert not bench.running
    converter = bench.bring_up("desk", labels=dict(makes))
    while bench.running:
        for worker, calls in bench.running.items():
            expected = {converter} if calls[0][0].stage == "prepare" else {pi}
            assert {worker} == expected
        bench.end(next(iter(bench.running)))
    assert bench.scheduler.is_done
    stages = Counter(task.stage for task in bench.started)
    assert stages == {"prepare": 4, "quality": 4, "latency": 4}


def twins(*boards, quantized=2):
    """The same cells on several boards."""
    return [
        replace(
            cell,
            cell_id=f"{board.host} {cell.cell_id}",
            baseline_cell_id=f"{board.host} {cell.baseline_cell_id}",
        )
        for board in boards
        for cell in group("a", quantized, ssh=board, is_timed=False)
    ]


def test_what_several_boards_run_is_prepared_once():
    boards = BOARD, SshBoard("one"), SshBoard("two")
    bench = Bench(twins(*boards))
    for board in boards:
        bench.bring_up(board.host, board=board)
    bench.run_down()
    assert bench.scheduler.is_done
    assert Counter(bench.statuses().values()) == {"ok": 9}
    stages = Counter(task.stage for task in bench.started)
    assert stages == {"prepare": 3, "quality": 9}
    reused = Counter(
        str(task.prepared.values.get("reused")) for task in bench.started if task.stage == "quality"
    )
    assert reused == {"None": 3, "['artifact']": 6}


@pytest.mark.parametrize("how", ["failed", "crashed"])
def test_what_could_not_be_prepared_for_one_board_is_tried_for_the_next(how):
    boards = BOARD, SshBoard("one"), SshBoard("two")
    bench = Bench(twins(*boards, quantized=0), workers=1)
    for board in boards:
        bench.bring_up(board.host, board=board)
    if how == "failed":
        bench.end("w0", "failed")
    else:
        bench.lose("w0")
        bench.lose(where(bench)["prepare"])
    bench.run_down()
    assert bench.scheduler.is_done
    assert Counter(bench.statuses().values()) == {how: 1, "ok": 2}


def test_another_dataset_s_artifact_is_no_other_s():
    """Its ranges were observed on other examples."""
    one, *_ = twins(BOARD, quantized=0)
    other = replace(one, cell_id="x", baseline_cell_id="x", dataset=Ref("other", "m:other"))
    bench = Bench([one, other])
    bench.bring_up("board", board=BOARD)
    bench.run_down()
    assert Counter(task.stage for task in bench.started) == {"prepare": 2, "quality": 2}


def test_a_board_runs_nothing_that_was_not_meant_for_it_and_a_node_no_board_s_cells():
    other = SshBoard("one")
    bench = Bench(group("a", quantized=0) + group("b", quantized=0, ssh=other), workers=0)
    bench.bring_up("board", board=BOARD)
    assert not bench.running
    bench.bring_up()
    bench.run_down()
    assert set(bench.statuses()) == {cell_of("a", 0).cell_id}
    assert [device.ssh for device in bench.scheduler.stranded()] == [other]


def test_what_cannot_be_prepared_ends_its_cell_and_a_baseline_s_cells_with_it():
    bench = Bench(group("a", ssh=BOARD) + group("b", ssh=BOARD), workers=1)
    bench.bring_up("board", board=BOARD)
    while bench.running:
        worker, calls = next(iter(bench.running.items()))
        cell = calls[0][0].cell
        is_bad = cell.cell_id == cell_of("a", 0).cell_id or cell.cell_id == cell_of("b", 1).cell_id
        bench.end(worker, "failed" if is_bad else "ok")
    statuses = bench.statuses()
    assert [statuses[cell.cell_id] for cell in group("a")] == ["failed"] * 4
    assert [statuses[cell.cell_id] for cell in group("b")] == ["ok", "failed", "ok", "ok"]


def test_a_board_that_is_lost_costs_attempts_of_what_ran_on_it_and_nothing_is_prepared_again():
    bench = Bench(group("a", quantized=0, ssh=BOARD), workers=1)
    for _ in range(3):
        board = bench.bring_up("board", board=BOARD)
        if "prepare" in where(bench):
            bench.end(where(bench)["prepare"])
        bench.running.pop(board)
        bench.take(WorkerLost(board, "node_lost", "gone", ""))
    bench.bring_up("board", board=BOARD)
    bench.run_down()
    assert Counter(task.stage for task in bench.started) == {
        "prepare": 1, "quality": 4, "latency": 1,
    }  # fmt: skip
    assert set(bench.statuses().values()) == {"ok"}


def test_the_content_of_a_board_s_baseline_is_looked_at_by_a_node():
    first = Bench(group("a", ssh=BOARD), workers=1, fingerprint="h")
    first.bring_up("board", board=BOARD)
    first.run_down()
    again = Bench(group("a", ssh=BOARD), past=first.past(), workers=1, fingerprint="h")
    # Nobody knows yet whether the hardware is what timed the rows.
    assert not again.running
    assert [device.ssh for device in again.scheduler.stranded()] == [BOARD]
    again.bring_up("board", board=BOARD)
    assert where(again) == {"content": "w0"}
    again.end("w0")
    assert where(again) == {"runtime": "w1"}
    again.run_down()
    assert again.scheduler.is_done
    assert not again.finished


def test_a_board_with_another_runtime_runs_all_its_cells_again_and_the_user_is_told():
    first = Bench(group("a", ssh=BOARD), workers=1, fingerprint="h")
    first.content = replace(CONTENT, runtime="tflite-runtime 2.13.0")
    first.bring_up("board", board=BOARD)
    first.run_down()
    again = Bench(group("a", ssh=BOARD), past=first.past(), workers=1, fingerprint="h")
    again.content = replace(CONTENT, runtime="tflite-runtime 2.14.0")
    again.bring_up("board", board=BOARD)
    again.run_down()
    stages = Counter(task.stage for task in again.started)
    assert stages == {"content": 1, "runtime": 1, "prepare": 4, "quality": 4, "latency": 4}
    assert "runtime changed since its rows were written" in again.notices[0]


def test_rows_stay_where_only_one_of_several_nodes_has_another_runtime_and_the_user_is_told():
    """What ran on one of them would run again on the other, and again, for ever."""
    apart = {"labels": (("a", "b"),), "prepared_on": (("c", "d"),)}
    first = Bench(group("a", **apart), workers=0, fingerprint="h")
    first.content = replace(CONTENT, runtime="tflite-runtime 2.13.0")
    first.bring_up("desk", labels={"c": "d"})
    first.bring_up("pi1", labels={"a": "b"})
    first.run_down()
    again = Bench(group("a", **apart), past=first.past(), workers=0, fingerprint="h")
    again.content = replace(CONTENT, runtime="tflite-runtime 2.14.0")
    again.bring_up("desk", labels={"c": "d"})
    for name in ("pi1", "pi2"):
        again.bring_up(name, labels={"a": "b"})
    again.run_down()
    assert again.scheduler.is_done
    assert not again.finished
    assert "they stay, since other nodes may still have that" in again.notices[0]


def test_a_runtime_is_not_asked_for_where_the_cells_run_again_anyway():
    first = Bench(group("a", ssh=BOARD), workers=1, fingerprint="h")
    first.bring_up("board", board=BOARD)
    first.run_down()
    again = Bench(group("a", ssh=BOARD), past=first.past(), workers=1, fingerprint="h")
    again.content = replace(CONTENT, model="retrained")
    again.bring_up("board", board=BOARD)
    again.run_down()
    stages = Counter(task.stage for task in again.started)
    assert stages == {"content": 1, "prepare": 4, "quality": 4, "latency": 4}


def test_rows_of_before_runtimes_were_noted_stand_by_what_the_row_says():
    first = Bench(group("a", quantized=0, ssh=BOARD), workers=1, fingerprint="h")
    first.bring_up("board", board=BOARD)
    first.run_down()
    past = first.past()
    ((outcome, attempt),) = past.kept.values()
    values = outcome.values | {"runtime": "tflite-runtime 2.14.0"}
    kept = {outcome.cell_id: (replace(outcome, values=values), attempt)}
    again = Bench(group("a", quantized=0, ssh=BOARD), replace(past, kept=kept), 1, fingerprint="h")
    again.content = replace(CONTENT, runtime="tflite-runtime 2.14.0")
    again.bring_up("board", board=BOARD)
    again.run_down()
    assert Counter(task.stage for task in again.started) == {"content": 1, "runtime": 1}


@pytest.mark.parametrize("how", ["failed", "lost"])
def test_rows_stay_where_a_board_does_not_say_its_runtime_and_the_user_is_told(how):
    first = Bench(group("a", quantized=0, ssh=BOARD), workers=1, fingerprint="h")
    first.bring_up("board", board=BOARD)
    first.run_down()
    again = Bench(group("a", quantized=0, ssh=BOARD), past=first.past(), workers=1, fingerprint="h")
    board = again.bring_up("board", board=BOARD)
    again.end("w0")
    if how == "failed":
        again.end(board, "failed")
    for _ in range(4 if how == "lost" else 0):
        again.running.pop(board)
        again.take(WorkerLost(board, "node_lost", "gone", ""))
        board = again.bring_up("board", board=BOARD)
    assert again.scheduler.is_done
    assert "cannot be checked" in again.notices[0]
    assert not again.finished


def test_where_nobody_can_end_a_stage_none_is_given_up_for_its_time():
    bench = Bench(group("a", quantized=0, is_timed=False), workers=0)
    bench.scheduler.forgo_deadlines()
    bench.bring_up()
    assert bench.scheduler.next_deadline() is not None, "it runs"
    bench.now = 1e9
    bench.take(Tick())
    bench.run_down()
    assert set(bench.statuses().values()) == {"ok"}
    assert bench.scheduler.next_deadline() is None


def test_a_board_that_is_another_machine_now_times_its_cells_again():
    first = Bench(group("a", ssh=BOARD), workers=1, fingerprint="h")
    first.bring_up("board", board=BOARD)
    first.run_down()
    again = Bench(group("a", ssh=BOARD), past=first.past(), workers=1, fingerprint="h")
    again.bring_up("board", board=BOARD, fingerprint="other")
    again.run_down()
    stages = Counter(task.stage for task in again.started)
    assert stages == {"content": 1, "runtime": 1, "latency": 4}


def test_cells_without_a_gpu_are_stranded_where_all_workers_have_one():
    bench = Bench(group("a", quantized=0) + group("b", quantized=0, gpus=1), workers=0)
    bench.bring_up(gpus=1)
    bench.run_down()
    assert [device.gpus for device in bench.scheduler.stranded()] == [0]
    bench.bring_up()
    bench.run_down()
    assert bench.scheduler.is_done


def test_what_a_worker_waits_for_is_told_once():
    bench = Bench([])
    for text in ("taken by ann", "taken by ann", "taken by bob"):
        bench.take(Waiting(text))
    assert bench.notices == ["taken by ann", "taken by bob"]


def test_a_worker_with_a_gpu_runs_cells_for_gpus_alone_and_times_them_with_the_node_to_itself():
    plan = group("a") + group("b", gpus=1)
    bench = Bench(plan, workers=1)
    bench.bring_up(gpus=1)
    while bench.running:
        for worker, calls in bench.running.items():
            assert {task.cell.device.gpus for task in calls[0]} == {int(worker == "w1")}
        bench.end(next(iter(bench.running)))
    assert bench.scheduler.is_done
    assert set(bench.statuses().values()) == {"ok"}


def test_cells_for_gpus_wait_where_no_worker_has_one():
    bench = Bench(group("a", gpus=1))
    assert not bench.running
    assert [device.gpus for device in bench.scheduler.stranded()] == [1]


def test_the_hardware_of_a_gpu_s_cell_is_that_of_the_worker_that_has_it():
    plan = group("a", quantized=0, gpus=1)
    first = Bench(plan, workers=1, fingerprint="cpu only")
    first.bring_up(gpus=1, fingerprint="h")
    first.run_down()
    past = first.past()
    for ended in first.finished:
        past.keys[ended.cell.cell_id] = key_of(ended.cell, CONTENT, "h")
    for hardware, timed in (("h", 0), ("other", 1)):
        again = Bench(plan, past=past, workers=1, fingerprint="cpu only")
        again.bring_up(gpus=1, fingerprint=hardware)
        again.run_down()
        assert [task.stage for task in again.started].count("latency") == timed


def test_a_run_whose_last_boards_are_given_up_has_no_prospect_and_says_why():
    bench = Bench(group("a", ssh=BOARD) + group("b"), workers=1)
    board = bench.bring_up("board", board=BOARD)
    bench.running.pop(board, None)
    bench.take(WorkerLost(board, "node_lost", "gone"))
    bench.take(BoardGivenUp(BOARD, "its key changed"))
    assert bench.scheduler.without_prospect() == []  # others still run
    bench.run_down()
    assert bench.scheduler.without_prospect() == ["its key changed"]
    assert not bench.scheduler.is_done
