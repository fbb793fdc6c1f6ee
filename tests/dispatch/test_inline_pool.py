"""All workers in this process, one of them with a board behind a real SSH server."""

import os
import threading
from dataclasses import replace

import psutil
import pytest
from ssh_server import wait_until
from worker_stubs import FLOAT

from qb_cluster.contracts import Device, Measure, Ref, Task
from qb_cluster.dispatch.events import TasksEnded, Waiting, WorkerLost, WorkerUp
from qb_cluster.dispatch.inline_pool import InlinePool
from qb_cluster.dispatch.sweep import Sweep
from qb_cluster.errors import PoolError
from qb_cluster.store.run_folder import RunFolder
from qb_cluster.worker import Owner
from qb_cluster.worker.site import Elsewhere

RUNTIME = "stranger_board"

pytestmark = pytest.mark.usefixtures("stranger", "environment")


@pytest.fixture
def environment(monkeypatch):
    """Undo what a pool sets for this process."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


@pytest.fixture
def make_pool(tmp_path):
    pools = []

    def make(**options):
        pools.append(InlinePool(str(tmp_path / "artifacts"), 1, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def baseline(board):
    """A float cell that is prepared here and runs on a board."""
    return replace(
        FLOAT,
        model=Ref("m", "stranger:centroids"),
        dataset=Ref("d", "stranger:blobs"),
        backend=Ref("b", "stranger:BoardBackend"),
        device=Device("zero", ssh=board),
        measure=Measure(latency=None),
    )


def test_the_worker_says_what_this_machine_is(make_pool):
    (up,) = make_pool(labels={"qb/board": "desk"}).wait(0)
    assert up.labels == {"qb/board": "desk"}


@pytest.mark.parametrize(("gpus", "seen"), [(True, "7"), (False, "")])
def test_gpus_are_hidden_where_no_cell_is_for_one_and_counted_as_nvml_does(
    make_pool, monkeypatch, gpus, seen
):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "7")
    make_pool(gpus=gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_board_that_is_lost_loses_the_calls_it_had_and_comes_back(board, make_pool):
    pool = make_pool(boards={board: RUNTIME}, owner=Owner("run 1", "ann"))
    here, up = pool.wait(0)
    assert (here.board, up.board) == (None, board)
    cell = baseline(board)
    pool.start(here.worker, (Task(cell, "prepare", 1, ()),))
    (made,) = pool.wait(0)
    quality = (Task(cell, "quality", 1, (), prepared=made.outcomes[0]),)
    for agent in psutil.process_iter(["cmdline"]):
        if any(board.folder in word for word in agent.info["cmdline"] or ()):
            agent.parent().kill()  # its SSH session: the network is gone
    pool.start(up.worker, quality)
    pool.start(up.worker, quality)
    (lost,) = pool.wait(0)
    assert isinstance(lost, WorkerLost)
    assert (lost.worker, lost.cause) == (up.worker, "node_lost")
    (again,) = pool.wait(0)
    assert isinstance(again, WorkerUp)
    assert again.worker != up.worker
    pool.start(again.worker, quality)
    (ended,) = pool.wait(0)
    assert isinstance(ended, TasksEnded)
    assert ended.outcomes[0].status == "ok", ended.outcomes[0].traceback


def test_a_board_that_others_have_is_waited_for(board, make_pool):
    other = Elsewhere(board, Owner("run 2", "bob on lap"))
    assert other.arrive(RUNTIME) is None
    pool = make_pool(boards={board: RUNTIME}, owner=Owner("run 1", "ann"))
    _, waiting = pool.wait(0)
    assert isinstance(waiting, Waiting)
    assert waiting.is_taken
    assert "is taken by bob on lap since" in waiting.text
    other.close()
    wait_until(lambda: any(isinstance(event, WorkerUp) for event in pool.wait(0.1)))


@pytest.fixture
def run_folder(tmp_path):
    with RunFolder.open(tmp_path / "run", sweep="s", spec_text="", spec_digest="") as folder:
        yield folder


def test_a_board_that_stays_away_ends_the_run_which_says_what_is_left(make_pool, board, run_folder):
    told = []
    away = replace(board, port=9)
    pool = make_pool(boards={away: RUNTIME}, owner=Owner("run 1", "ann"))
    plan = [baseline(away)]
    sweep = Sweep(plan, run_folder, lambda: pool, told.append, told.append, stranded_s=0.5)
    with pytest.raises(PoolError, match=r"nothing has run for 0\.5 s: .*\(1 for 'zero' at least\)"):
        sweep.run()
    assert [text for text in told if "trying again" in text]
    assert not run_folder.count()


def test_a_run_waits_as_long_as_others_have_its_board(board, make_pool, run_folder):
    other = Elsewhere(board, Owner("run 2", "bob on lap"))
    assert other.arrive(RUNTIME) is None
    pool = make_pool(boards={board: RUNTIME}, owner=Owner("run 1", "ann"))
    told = []
    plan = [baseline(board)]
    sweep = Sweep(plan, run_folder, lambda: pool, told.extend, str, stranded_s=0.5)
    release = threading.Timer(5, other.close)
    release.start()
    sweep.run()
    release.join()
    assert [ended.status for ended in told] == ["ok"]
