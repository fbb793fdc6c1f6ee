"""Whatever is killed, and when: nothing is lost, nothing is there twice."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from stored_cells import finish, make_cell, quality

from qb_cluster.errors import RunFolderError
from qb_cluster.store.run_folder import RunFolder

HERE = Path(__file__).parent
N, CELLS = 5, 4  # what killed_driver.py runs


def start(what, folder):
    paths = [str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, HERE / "killed_driver.py", what, folder],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def open_folder(path):
    return RunFolder.open(path, sweep="digits", spec_text="sweep: digits", spec_digest="spec")


def counts(run, table):
    return Counter(pd.read_parquet(run / table)["cell_id"])


def assert_whole(run, finished, journaled):
    """Each finished cell has one row, and all that belongs to it, and nobody else has."""
    assert counts(run, "results") == dict.fromkeys(finished, 1)
    assert counts(run, "stages") == dict.fromkeys(journaled, 1)
    assert counts(run, "predictions") == dict.fromkeys(finished | journaled, N)
    assert counts(run, "layers") == dict.fromkeys(finished | journaled, 2)
    assert counts(run, "samples") == dict.fromkeys(finished, 4)
    assert set(pd.read_parquet(run / "results")["env_id"]) <= set(
        pd.read_parquet(run / "environments")["env_id"]
    )


def test_a_driver_killed_before_any_one_file_operation_loses_and_doubles_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(HERE)
    killed_driver = importlib.import_module("killed_driver")

    with start("steps", tmp_path) as driver:
        assert driver.wait(timeout=120) == 0
    steps = sorted(tmp_path.glob("done-*"), key=lambda path: int(path.name[5:]))
    seen = set()
    for done in steps:
        folder = tmp_path / done.name[5:]
        promised = set(done.read_text().split())
        with open_folder(folder) as run:
            finished, journaled = frozenset(run.finished()), frozenset(run.stage_outcomes())
            assert promised <= finished
            assert run.problems == []
            assert_whole(folder, finished, journaled)
            assert list((folder / ".tmp").iterdir()) == []
            killed_driver.run_sweep(run)
            assert len(run.finished()) == CELLS
            assert_whole(folder, frozenset(run.finished()), frozenset(run.stage_outcomes()))
        seen.add((len(journaled), len(finished)))
    # The kills fell before, between and after all three commits.
    assert seen == {(0, 0), (2, 0), (2, 2), (2, 4)}
    assert len(steps) > 40


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.13])
def test_a_driver_killed_at_a_random_moment_loses_and_doubles_nothing(tmp_path, seconds):
    with start("loop", tmp_path) as driver:
        promised = [driver.stdout.readline().strip()]
        time.sleep(seconds)
        driver.kill()
        promised += driver.stdout.read().split()
    assert driver.returncode == -signal.SIGKILL
    with open_folder(tmp_path) as run:
        finished = frozenset(run.finished())
        assert set(promised) <= finished
        assert len(finished) - len(promised) in {0, 1}  # it may have died before it could say so
        assert_whole(tmp_path, finished, frozenset())


def test_a_second_driver_is_refused_until_the_first_one_is_gone(tmp_path):
    with start("loop", tmp_path) as driver:
        driver.stdout.readline()
        with pytest.raises(
            RunFolderError, match=rf"in use .*\(process {driver.pid} on .+, since 20..-.*--out"
        ):
            open_folder(tmp_path)
        driver.kill()
    open_folder(tmp_path).close()


def test_a_second_driver_in_the_same_process_is_refused_too(tmp_path):
    with open_folder(tmp_path), pytest.raises(RunFolderError, match="in use"):
        open_folder(tmp_path)
    open_folder(tmp_path).close()


def test_a_reader_beside_a_driver_always_sees_whole_commits(tmp_path):
    """Two rows go down in each commit, so that half a commit would be seen."""
    stop = threading.Event()
    failures, sizes = [], []

    def keep_reading():
        while not stop.is_set():
            try:
                rows = pd.read_parquet(tmp_path / "results")
                sizes.append(len(rows))
                assert rows["cell_id"].is_unique
                assert len(rows) % 2 == 0
                finished = set(rows["cell_id"])
                assert finished <= set(pd.read_parquet(tmp_path / "predictions")["cell_id"])
            except Exception as error:
                failures.append(error)

    with open_folder(tmp_path) as run:
        reader = threading.Thread(target=keep_reading)
        reader.start()
        for number in range(0, 40, 2):
            cells = [make_cell("static", "w8a8", seed=seed) for seed in (number, number + 1)]
            outcomes = [(quality(cell, n=N, right=4, worse=1),) for cell in cells]
            run.commit_cells(
                [finish(cell, *found) for cell, found in zip(cells, outcomes, strict=True)]
            )
        stop.set()
        reader.join()
    assert failures == []
    assert len(set(sizes)) > 2
