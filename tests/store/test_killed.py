"""Whatever is killed, and when: nothing is lost, nothing is there twice."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from object_store import names, read
from pyarrow import fs
from ssh_server import wait_until
from stored_cells import finish, make_cell, quality

from qb_cluster.errors import RunFolderError
from qb_cluster.storage import StorageError
from qb_cluster.storage.object_folder import ObjectFolder
from qb_cluster.store import reading, run_folder
from qb_cluster.store.reading import read_results, read_table
from qb_cluster.store.run_folder import RunFolder

pytestmark = pytest.mark.kills

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
    assert len(steps) > 30


def assert_old_or_new(place, cells):
    """What is stored of four cells, three of which are run again, is of before or of after.

    Returns:
        Whether the first cell's stage has been journaled anew, and whether there are new rows.
    """
    first, second, third, fourth = (cell.cell_id for cell in cells)
    rows = read(place, "results").set_index("cell_id")
    assert rows.index.is_unique
    assert set(rows.index) == {first, second, third, fourth}
    is_new = rows.loc[first, "attempt"] == 2
    assert rows["attempt"].to_dict() == {first: 1, second: 1, third: 1, fourth: 1} | (
        {first: 2, second: 2, third: 2} if is_new else {}
    )
    assert (rows.loc[second, "status"] == "crashed") == is_new
    stages = read(place, "stages").set_index("cell_id")["attempt"].to_dict()
    is_journaled = stages[first] == 2
    assert stages == {first: 1 + is_journaled} | ({} if is_new else {second: 1})
    assert is_journaled or not is_new
    scores = read(place, "predictions").groupby("cell_id")["score"].agg(["count", "sum"])
    assert scores["count"].to_dict() == dict.fromkeys(rows.index.difference([second]), N) | (
        {} if is_new else {second: N}
    )
    assert scores.loc[first, "sum"] == (2 if is_journaled else 5)
    assert scores.loc[third, "sum"] == (2 if is_new else 4)
    assert scores.loc[fourth, "sum"] == 4
    having = {first, third, fourth} | (set() if is_new else {second})
    assert Counter(read(place, "layers")["cell_id"]) == dict.fromkeys(having, 2)
    samples = read(place, "samples")
    assert Counter(samples["cell_id"]) == dict.fromkeys(having, 4)
    attempts = samples.groupby("cell_id")["attempt"].unique()
    assert [list(attempts[cell_id]) for cell_id in (first, third, fourth)] == (
        [[2], [2], [1]] if is_new else [[1], [1], [1]]
    )
    return is_journaled, is_new


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    module = importlib.import_module("killed_driver")
    module.merge_eagerly(monkeypatch)
    monkeypatch.setattr("qb_cluster.store.parts._RETRIES", 2)
    return module


def check_after_kill(place, driver, open_run):
    """Check what readers see of a killed driver's folder, and what the next driver makes of it."""
    try:
        stored = read_results(place)
        assert sorted(stored["cell_id"]) == sorted(cell.cell_id for cell in driver.CELLS)
        samples = read_table(reading.open_folder(place), "samples", [])
        assert not samples.duplicated(["cell_id", "attempt", "block", "position"]).any()
    except RunFolderError as error:
        assert "Run `qb run` again" in str(error)  # noqa: PT017 - killed within an exchange
    with open_run(place) as run:
        assert run.problems == []
        seen = assert_old_or_new(place, driver.CELLS)
        driver.run_again(run)
    assert assert_old_or_new(place, driver.CELLS) == (True, True)
    assert names(place, ".pending") == []
    return seen


@pytest.mark.nightly
def test_a_driver_killed_while_it_replaces_rows_and_merges_parts_loses_and_doubles_nothing(
    tmp_path, driver
):
    with start("again", tmp_path) as process:
        assert process.wait(timeout=120) == 0
    folders = [path for path in tmp_path.iterdir() if path.name != "first"]
    seen = set()
    for folder in folders:
        seen.add(check_after_kill(str(folder), driver, open_folder))
        assert list((folder / ".tmp").iterdir()) == []
    assert seen == {(False, False), (True, False), (True, True)}
    assert len(folders) > 30


class Killed(BaseException):
    """The process is no more."""


class DyingFolder(ObjectFolder):
    """An object store whose driver dies just before its `step`-th write; nothing is written then.

    A place without `://` is a folder of this machine that is used as if it were an object store.
    """

    def __init__(self, place):
        opened = None if "://" in place else (fs.LocalFileSystem(), place)
        super().__init__(place, opened)

    step = -1
    steps = 0

    def replace(self, name, data):
        self._write()
        if isinstance(self._system, fs.LocalFileSystem):
            self._system.create_dir(self._path(name).rpartition("/")[0])
        super().replace(name, data)

    def delete(self, name):
        self._write()
        super().delete(name)

    def lock(self):
        class Unlocked:
            def check(self):
                pass

            def release(self):
                pass

        return Unlocked()  # its own are in tests/storage

    def _write(self):
        self.steps += 1
        if self.steps > self.step >= 0:
            raise Killed


def open_unlocked(place, folder=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "open_folder", lambda _: folder or DyingFolder(place))
        return open_folder(place)


def kill_before(step, place, driver):
    """Run a driver until it dies; gives what was found then, or `None` if it got to the end."""
    with open_unlocked(place) as run:
        driver.run_sweep(run)
    folder = DyingFolder(place)
    folder.step = step
    try:
        with open_unlocked(place, folder) as run:
            driver.run_again(run)
    except Killed:
        return check_after_kill(place, driver, open_unlocked)
    return None


def test_a_driver_killed_before_any_one_write_where_nothing_is_exchanged_in_one_step(
    tmp_path, driver, monkeypatch
):
    monkeypatch.setattr(reading, "open_folder", DyingFolder)
    found = [kill_before(0, str(tmp_path / "0"), driver)]
    while found[-1]:
        found.append(kill_before(len(found), str(tmp_path / str(len(found))), driver))
    assert set(found) == {(False, False), (True, False), (True, True), None}
    assert len(found) > 30


class FailingFolder(DyingFolder):
    """An object store that refuses a few writes, from its `step`-th one on."""

    refused = 3

    def _write(self):
        self.steps += 1
        if self.step >= 0 and 0 < self.steps - self.step <= self.refused:
            raise StorageError("please slow down")


def test_an_object_store_that_refuses_any_few_writes_loses_and_doubles_nothing(
    tmp_path, driver, monkeypatch
):
    """The same driver tries again, or a new one does."""
    monkeypatch.setattr(reading, "open_folder", DyingFolder)
    for step in range(0, 60, 2):
        place = str(tmp_path / str(step))
        with open_unlocked(place) as run:
            driver.run_sweep(run)
        folder = FailingFolder(place)
        with open_unlocked(place, folder) as run:
            folder.steps, folder.step = 0, step
            try:
                driver.run_again(run)
            except RunFolderError as error:
                assert "slow down" in str(error)  # noqa: PT017 - merges may fail without a word
                with suppress(RunFolderError):  # it may not know what the store has
                    driver.run_again(run)
        assert check_after_kill(place, driver, open_unlocked)
        if folder.steps < step:
            break
    else:
        raise AssertionError


@pytest.mark.nightly
def test_a_driver_of_an_object_store_killed_now_and_then(s3_place, driver):
    for step in (10, 17, 24, 31):
        assert kill_before(step, s3_place.replace("/run?", f"/run-{step}?"), driver)


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
            before = len(sizes)  # the first of two more may have begun before the commit
            wait_until(lambda before=before: failures or len(sizes) >= before + 2)
        stop.set()
        reader.join()
    assert failures == []
    assert set(range(2, 41, 2)) <= set(sizes)


def test_readers_beside_a_driver_that_replaces_and_merges_miss_nothing_and_see_nothing_twice(
    tmp_path, monkeypatch
):
    """Plain ones may fail when parts go under their hands; ours look again."""
    monkeypatch.setattr("qb_cluster.store.run_folder.MANY", 2)
    cells = [make_cell("static", "w8a8", seed=seed) for seed in range(6)]
    stop = threading.Event()
    problems, seen = [], {"ours": 0, "plain": 0}

    def keep_reading(kind, read_them):
        most = 0
        while not stop.is_set():
            try:
                found = list(read_them()["cell_id"])
            except (FileNotFoundError, KeyError):  # it has no columns if all parts went at once
                if kind == "ours":
                    problems.append("ours failed")
                continue
            if len(set(found)) != len(found) or len(found) < most:
                problems.append(f"{kind}: {len(set(found))} of {len(found)} after {most}")
            most = len(found)
            seen[kind] += 1

    readers = [
        threading.Thread(target=keep_reading, args=("ours", lambda: read_results(tmp_path))),
        threading.Thread(
            target=keep_reading, args=("plain", lambda: pd.read_parquet(tmp_path / "results"))
        ),
    ]
    with open_folder(tmp_path) as run:
        for reader in readers:
            reader.start()
        began = time.monotonic()
        try:
            # Until each has read, for half a minute at most: readers may be slow.
            while (took := time.monotonic() - began) < 3 or (took < 30 and not all(seen.values())):
                for cell in cells:
                    outcome = quality(cell, n=N, right=4, worse=1)
                    run.commit_cells([finish(cell, outcome)])
                time.sleep(0.05)
        finally:
            stop.set()
            for reader in readers:
                reader.join()
    assert problems == []
    assert all(seen.values())


def test_parts_that_stay_get_new_names_when_others_are_exchanged(tmp_path):
    """Else a reader could take those that went for parts that were never there."""
    cells = [make_cell("static", "w8a8", seed=seed) for seed in range(3)]
    with open_folder(tmp_path) as run:
        for cell in cells:
            run.commit_cells([finish(cell, quality(cell, n=N, right=4, worse=1))])
        before = set(names(str(tmp_path), "results"))
        run.commit_cells([finish(cells[0], quality(cells[0], n=N, right=4, worse=1))])
        after = set(names(str(tmp_path), "results"))
    assert not before & after
    assert len(before) == len(after) == 4
