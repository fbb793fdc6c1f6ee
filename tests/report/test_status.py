"""`qb status`: what is counted, and what is said of it."""

import io
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest
from object_store import s3_place, s3_server
from rich.console import Console
from stored_cells import BEGIN, failed, finish, make_cell, never_run, quality

from qb_cluster.contracts import Bits
from qb_cluster.errors import RunFolderError
from qb_cluster.report.run_status import given_up, hosts, pace, read_status, reasons, reuse
from qb_cluster.report.status import MOST_REASONS, print_status, to_json, to_terminal
from qb_cluster.store.rows import results_table
from qb_cluster.store.run_folder import RunFolder

__all__ = ["s3_place", "s3_server"]

STORY = "09:14:03 attempt 1 on bench: killed by signal 11\n09:14:09 attempt 2 on bench: signal 11"


def cell(number, **changes):
    bits = str(Bits(2 + number % 15, 2 + number // 15))
    return make_cell("static", bits, **changes)


def ok(number, after_s=0.0, **changes):
    one = cell(number)
    return finish(one, quality(one, started_at=BEGIN + timedelta(seconds=after_s), **changes))


def unsupported(number):
    return never_run(cell(number, execution=None), "unsupported", "no kernel")


def table(*finished):
    return results_table(finished, "spec").to_pandas()


# Pace


def test_the_pace_is_that_of_the_last_minutes():
    now = BEGIN + timedelta(minutes=60)
    old = [ok(number, after_s=number) for number in range(30)]
    new = [ok(30 + number, after_s=3600 - 10 * number) for number in range(1, 31)]
    assert pace(table(*old, *new), BEGIN, now) == pytest.approx(6, rel=0.1)
    assert pace(table(*old), BEGIN, now) is None


def test_the_pace_of_a_run_that_has_just_begun_leaves_earlier_ones_out():
    cells = table(*(ok(number, after_s=number) for number in range(60)))
    began, now = BEGIN + timedelta(seconds=32), BEGIN + timedelta(seconds=62)
    assert pace(cells, began, now) == pytest.approx(60, rel=0.1)
    assert pace(cells, now, now) is None


@pytest.mark.parametrize(("cells", "seconds"), [(0, 60), (2, 60), (30, 2.5)])
def test_too_little_gives_no_pace(cells, seconds):
    finished = [ok(number) for number in range(cells)]
    assert pace(table(*finished), BEGIN, BEGIN + timedelta(seconds=seconds)) is None


def test_cells_that_never_ran_are_no_pace():
    never = [unsupported(n) for n in range(60)]
    assert pace(table(*never), BEGIN, BEGIN + timedelta(seconds=60)) is None


# Reasons


def test_cells_that_failed_alike_are_one_line_whatever_ids_they_name():
    lost = [
        never_run(cell(n), "failed", f"not run: its float baseline {n:016x} crashed")
        for n in range(3)
    ]
    slow = finish(cell(4), failed(cell(4), "timeout", "it took longer than 600 s"))
    never = unsupported(5)
    first, *others = reasons(table(slow, *lost, never, ok(6)))
    assert (first.status, first.cells) == ("failed", 3)
    assert first.reason == "not run: its float baseline … crashed"
    assert first.example == f"digits-cnn/digits/tflite/cpu/static/{cell(0).bits}"
    assert [(one.status, one.reason, one.cells) for one in others] == [
        ("timeout", "it took longer than 600 s", 1),
        ("unsupported", "no kernel", 1),
    ]


def test_a_cell_that_ended_well_after_a_lost_attempt_was_not_given_up():
    saved = replace(ok(0), story=STORY, attempt=2)
    lost = replace(never_run(cell(1), "crashed", "twice"), story=STORY, attempt=2)
    (one,) = given_up(table(saved, lost))
    assert (one.cell_id, one.status, one.story) == (cell(1).cell_id, "crashed", STORY)
    assert one.name == f"digits-cnn/digits/tflite/cpu/static/{cell(1).bits}"


# Reuse


def test_what_cells_need_is_made_or_was_ready():
    baseline = make_cell(None)
    found = ["model", "dataset", "baseline"]
    cells = [
        finish(baseline, quality(baseline)),
        ok(0, reused=["model", "dataset"]),
        *(ok(number, reused=found) for number in range(1, 9)),
        ok(9, reused=[*found, "artifact", "twin"]),
        unsupported(10),
    ]
    counted = {one.what: (one.made, one.found) for one in reuse(table(*cells))}
    assert counted == {
        "model": (1, 10),
        "dataset": (1, 10),
        "baseline outputs": (1, 9),
        "artifact": (10, 1),
    }
    simulated = [replace(one, cell=replace(one.cell, simulator=baseline.backend)) for one in cells]
    counted = {one.what: (one.made, one.found) for one in reuse(table(*simulated))}
    assert counted["simulated twin"] == (9, 1)


def test_nothing_that_ran_is_nothing_reused():
    assert reuse(table()) == reuse(table(unsupported(0))) == ()


# Hosts


def test_cells_are_counted_by_the_host_that_ran_them():
    cells = table(*(ok(number) for number in range(4)))
    cells["env_id"] = ["a", "b", "a", None]
    environments = pd.DataFrame(
        {"env_id": ["a", "b"], "environment_json": ['{"host": "pi"}', "{}"]}
    )
    assert hosts(cells, environments) == {"pi": 2, "unknown": 1}


# Whole folders


def opened(path, planned_cells=None):
    return RunFolder.open(
        path, sweep="digits", spec_text="", spec_digest="spec", planned_cells=planned_cells
    )


@pytest.fixture
def finished():
    lost = [
        replace(never_run(cell(n), "crashed", f"gone [{n}/2]"), story=STORY, attempt=2)
        for n in (20, 21)
    ]
    slow = [finish(cell(n), failed(cell(n), "timeout", "too slow [/x]")) for n in (22, 23, 24)]
    return [*(ok(n, reused=["model", "dataset"]) for n in range(10)), *lost, *slow, unsupported(25)]


@pytest.fixture
def run(tmp_path, finished):
    with opened(tmp_path / "run", planned_cells=40) as folder:
        folder.commit_cells(finished)
    return tmp_path / "run"


def shown(status, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    to_terminal(status, console)
    return console.file.getvalue()


def test_a_run_without_a_driver_is_told_with_what_is_left(run):
    status = read_status(run)
    assert (status.planned, status.finished, status.left) == (40, 16, 24)
    assert status.statuses == {"ok": 10, "timeout": 3, "crashed": 2, "unsupported": 1}
    assert (status.driver, status.cells_per_minute, status.minutes_left) == (None, None, None)
    assert status.hosts == {"bench": 13}
    assert [(r.status, r.cells) for r in status.reasons] == [
        ("timeout", 3),
        ("crashed", 1),
        ("crashed", 1),
        ("unsupported", 1),
    ]
    assert len(status.given_up) == 2
    text = shown(status)
    assert "16 of 40 cells finished, 24 left" in text
    assert "no driver is running; run the same `qb run` command again to resume" in text
    assert "too slow [/x]" in text  # it is no markup
    assert "attempt 2 on bench: signal 11" in text


def test_rows_of_cells_that_the_spec_no_longer_has_are_counted_apart(run):
    kept = [cell(number).cell_id for number in (0, 1, 22)]
    with opened(run, planned_cells=4) as folder:
        folder.count_only([*kept, cell(30).cell_id])
        assert (folder.count(), set(folder.finished())) == (3, set(kept))
    status = read_status(run)
    assert (status.planned, status.finished, status.left, status.unplanned) == (4, 3, 1, 13)
    assert status.statuses == {"ok": 2, "timeout": 1}
    assert status.given_up == ()
    text = shown(status)
    assert "3 of 4 cells finished, 1 left\n" in text
    assert "13 more rows are of cells that the spec no longer has\n" in text


def test_a_cell_that_comes_back_into_the_spec_counts_again(run):
    with opened(run, planned_cells=1) as folder:
        folder.count_only([cell(0).cell_id])
    with opened(run, planned_cells=16) as folder:
        folder.count_only(list(folder.finished()))
    status = read_status(run)
    assert (status.finished, status.left, status.unplanned) == (16, 0, 0)


def test_where_nobody_noted_which_cells_are_of_the_spec_too_many_rows_are_of_no_total(run):
    with opened(run, planned_cells=15):
        pass
    status = read_status(run)
    assert (status.planned, status.finished, status.left) == (None, 16, None)
    assert "16 cells finished\n" in shown(status)


def test_the_same_is_there_for_programs(run):
    status = read_status(run)
    found = json.loads(to_json(replace(status, driver=None)))
    assert (found["planned"], found["left"], found["driver"]) == (40, 24, None)
    assert found["statuses"] == status.statuses
    assert found["reasons"][0] == {
        "status": "timeout",
        "reason": "too slow [/x]",
        "cells": 3,
        "example": f"digits-cnn/digits/tflite/cpu/static/{cell(22).bits}",
    }
    assert found["reuse"][0] == {"what": "model", "made": 3, "found": 10}


def test_a_driver_at_work_is_named_with_its_pace_and_what_is_left(tmp_path, finished, monkeypatch):
    with opened(tmp_path / "run", planned_cells=40) as folder:
        folder.commit_cells(finished)
        status = read_status(tmp_path / "run")
        print_status(tmp_path / "run", Console(file=io.StringIO()))
    assert (status.driver.pid, status.driver.host) == (os.getpid(), platform.node())
    assert status.driver.is_certain
    assert status.cells_per_minute is None  # these cells ended long before it began
    busy = replace(status, cells_per_minute=12.345, minutes_left=24 / 12.345)
    text = shown(busy)
    assert f"process {os.getpid()} on {platform.node()} has been running since 20" in text
    assert "12.3 cells/min, about 2 min left" in text
    assert json.loads(to_json(busy))["driver"]["pid"] == os.getpid()
    assert read_status(tmp_path / "run").driver is None


def test_a_driver_that_was_killed_is_not_running(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from qb_cluster.store.run_folder import "
        "RunFolder; RunFolder.open(Path(sys.argv[1]), sweep='digits', spec_text='', "
        "spec_digest='spec', planned_cells=3); os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert killed.returncode == 9
    status = read_status(tmp_path / "run")
    assert (status.driver, status.finished, status.left) == (None, 0, 3)
    assert "no driver is running" in shown(status)


def test_a_run_in_an_object_store_is_read_alike(request, finished):
    url = request.getfixturevalue("s3_place")
    with opened(url, planned_cells=40) as folder:
        folder.commit_cells(finished)
        status = read_status(url)
    assert (status.finished, status.left, status.driver.pid) == (16, 24, os.getpid())
    assert read_status(url).driver is None


def test_a_driver_elsewhere_may_have_been_killed(run, monkeypatch):
    with opened(run):
        monkeypatch.setattr(platform, "node", lambda: "another")
        status = read_status(run)
    assert not status.driver.is_certain
    assert ", unless it was killed" in shown(status)


def test_a_folder_of_very_many_reasons_says_how_many_more_and_where(tmp_path):
    cells = [
        replace(never_run(cell(n), "crashed", f"kind {n}"), story=STORY)
        for n in range(MOST_REASONS + 4)
    ]
    with opened(tmp_path / "run") as folder:
        folder.commit_cells(cells)
    status = read_status(tmp_path / "run")
    assert (status.planned, status.left) == (None, None)
    text = shown(status)
    assert f"{MOST_REASONS + 4} cells finished\n" in text
    assert f"… and 4 more reasons (qb status --json {tmp_path / 'run'})\n" in text
    assert f"… and {MOST_REASONS - 4} more cells given up" in text


def test_what_is_no_run_folder_is_told(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        read_status(tmp_path)
