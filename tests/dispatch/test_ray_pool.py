import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pool_runners
import psutil
import pytest
from sweep_cells import cell_of

from qb_cluster.contracts import Ref, Task
from qb_cluster.dispatch import node_locks, ray_pool
from qb_cluster.dispatch.events import TasksEnded, Waiting, WorkerLost, WorkerUp
from qb_cluster.dispatch.ray_pool import RayPool
from qb_cluster.errors import PoolError

pytestmark = [
    pytest.mark.ray,
    # JAX, loaded by other tests, fears for children that do not exec; those of Ray do.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]

SUPPORT = Path(pool_runners.__file__).parent


def call_of(*deeds):
    """The tasks of a call, each doing one thing."""
    cells = [
        replace(cell_of("a", number + 1), model=Ref("deed", deed))
        for number, deed in enumerate(deeds)
    ]
    return tuple(Task(cell, "quality", 1, (0,)) for cell in cells)


def wait_for(pool, count, within_s=120.0):
    """Wait for so many events, in the order in which they come; a slow lock's notice is none."""
    events, until = [], time.monotonic() + within_s
    while len(events) < count:
        assert time.monotonic() < until, f"only these came: {events}"
        events += [event for event in pool.wait(0.5) if not isinstance(event, Waiting)]
    return events


def written(path):
    """Wait for a file, and read it."""
    until = time.monotonic() + 20
    while not path.exists() or not path.read_text(encoding="utf-8"):
        assert time.monotonic() < until
        time.sleep(0.01)
    return path.read_text(encoding="utf-8")


def pid_of(pool, worker):
    pool.start(worker, call_of("nothing"))
    (ended,) = wait_for(pool, 1)
    return ended.outcomes[0].values["pid"]


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def cluster():
    """A head without cores, and one board with two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=2, labels={"qb/board": "first"})
        yield cluster
        cluster.shutdown()


@pytest.fixture
def locked_node(cluster):
    """A node that a sweep is to have to itself."""
    node = cluster.add_node(num_cpus=1, labels={"qb/board": "locked"}, resources={"qb_lock": 1})
    yield node
    cluster.remove_node(node)


@pytest.fixture
def make_pool(tmp_path):
    pools = []

    def make(**arguments):
        defaults = {
            "threads": 1,
            "import_paths": [str(SUPPORT)],
            "make_runner": pool_runners.Doing,
        }
        pool = RayPool("the place", tmp_path / "logs", **defaults | arguments)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def test_a_pool_has_a_worker_for_each_share_of_cores_and_leaves_no_logs(
    cluster, make_pool, tmp_path
):
    handler = signal.getsignal(signal.SIGTERM)
    pool = make_pool(address=cluster.address)
    first, second = wait_for(pool, 2)
    assert isinstance(first, WorkerUp)
    assert first.node == second.node
    assert first.labels["qb/board"] == "first"
    assert first.fingerprint
    assert len(first.cores) == 2 or len(os.sched_getaffinity(0)) < 2
    pool.start(first.worker, call_of("say:hello", "nothing", "nothing"))
    (ended,) = wait_for(pool, 1)
    tasks = call_of("say:hello", "nothing", "nothing")
    assert [o.cell_id for o in ended.outcomes] == [task.cell.cell_id for task in tasks]
    assert ended.outcomes[0].values["place"] == "the place"
    assert "hello" in (tmp_path / "logs" / f"{first.worker}.{os.getpid()}.log").read_text()
    assert pool.wait(0.1) == []
    pool.close()
    assert list((tmp_path / "logs").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == handler


def test_what_ended_before_a_crash_comes_first_then_one_loss_and_another_worker(
    cluster, make_pool, tmp_path
):
    pool = make_pool(address=cluster.address, cores=1)
    (up,) = wait_for(pool, 1)
    pool.start(up.worker, call_of("nothing", "nothing"))
    pool.start(up.worker, call_of(f"hang:{tmp_path / 'hangs'}"))
    pool.start(up.worker, call_of("nothing"))
    os.kill(int(written(tmp_path / "hangs")), signal.SIGKILL)
    ended, lost, another = wait_for(pool, 3)
    assert isinstance(ended, TasksEnded)
    assert len(ended.outcomes) == 2
    assert isinstance(lost, WorkerLost)
    assert (lost.worker, lost.cause) == (up.worker, "crashed")
    assert isinstance(another, WorkerUp)
    assert another.node == up.node
    assert another.worker != up.worker
    pool.start(up.worker, call_of("nothing"))  # too late: nothing comes of it
    assert pool.wait(0.5) == []
    assert pid_of(pool, another.worker) > 0


def test_the_story_of_a_segmentation_fault_has_the_last_printed_line(cluster, make_pool, tmp_path):
    pool = make_pool(address=cluster.address, cores=1)
    (up,) = wait_for(pool, 1)
    pid = pid_of(pool, up.worker)
    pool.start(up.worker, call_of("say:about to read address 0", "segfault"))
    lost, _ = wait_for(pool, 2)
    assert lost.cause == "crashed"
    assert "Segmentation fault at" in lost.message
    assert "pool_runners.py" in lost.message
    head, *lines = lost.story.splitlines()
    assert f"{up.worker} on host '{os.uname().nodename}'" in head
    assert f"process {pid}" in head
    assert lost.message in head
    assert lines[-1] == "about to read address 0"
    pool.close()
    left = {path.name for path in (tmp_path / "logs").iterdir()}
    assert left == {f"{up.worker}.{os.getpid()}.{ending}" for ending in ("log", "crash")}


def test_a_worker_that_raises_is_replaced(cluster, make_pool):
    pool = make_pool(address=cluster.address, cores=1)
    (up,) = wait_for(pool, 1)
    pool.start(up.worker, call_of("unheard_of"))
    lost, another = wait_for(pool, 2)
    assert (lost.worker, lost.cause) == (up.worker, "crashed")
    assert "AttributeError" in lost.message
    assert isinstance(another, WorkerUp)


def test_killing_ends_a_loop_in_c_and_its_children_within_a_second(cluster, make_pool, tmp_path):
    pool = make_pool(address=cluster.address, cores=1)
    (up,) = wait_for(pool, 1)
    pool.start(up.worker, call_of(f"loop_in_c:{tmp_path / 'loops'}"))
    pool.start(up.worker, call_of("nothing"))
    pids = [int(word) for word in written(tmp_path / "loops").split()]
    assert all(map(is_alive, pids))
    killed = time.monotonic()
    pool.kill(up.worker)
    while any(map(is_alive, pids)):
        assert time.monotonic() - killed < 1.0
        time.sleep(0.01)
    (another,) = wait_for(pool, 1)
    assert isinstance(another, WorkerUp)
    assert pool.wait(0.2) == []


def test_nodes_come_and_go(cluster, make_pool, tmp_path):
    pool = make_pool(address=cluster.address, cores=1)
    (up,) = wait_for(pool, 1)
    node = cluster.add_node(num_cpus=3, labels={"qb/board": "second"})
    (new,) = wait_for(pool, 1)
    assert new.labels["qb/board"] == "second"
    assert new.node == node.node_id

    pool.start(new.worker, call_of("nothing"))
    pool.start(new.worker, call_of(f"hang:{tmp_path / 'hangs'}"))
    written(tmp_path / "hangs")
    killed = time.monotonic()
    node.all_processes["raylet"][0].process.kill()
    ended, lost = wait_for(pool, 2)
    took_s = time.monotonic() - killed
    sys.stdout.write(f"a killed node was noticed after {took_s:.1f} s\n")
    assert isinstance(ended, TasksEnded)
    assert (lost.worker, lost.cause) == (new.worker, "node_lost")
    assert took_s < 10.0  # Ray itself takes 14
    assert pid_of(pool, up.worker) > 0
    assert pool.wait(2.5) == []  # nothing comes up where nothing is


@pytest.mark.parametrize(
    "first_s", [pytest.param(30.0, id="regained-at-once"), pytest.param(0.0, id="regained-later")]
)
def test_workers_end_with_the_lock_of_their_node_and_come_back_with_it(
    cluster, locked_node, make_pool, monkeypatch, first_s
):
    """Another sweep may have had the node in between, however short that was."""
    monkeypatch.setattr(node_locks, "_FIRST_S", first_s)
    pool = make_pool(address=cluster.address, cores=1)
    ups = {up.labels["qb/board"]: up for up in wait_for(pool, 2)}
    locked, free = ups["locked"], ups["first"]
    raylet = psutil.Process(locked_node.all_processes["raylet"][0].process.pid)
    actors = {actor.cmdline()[0].partition(".")[0]: actor for actor in raylet.children()}
    actors["ray::Holder"].kill()
    lost, again = wait_for(pool, 2)
    assert (lost.worker, lost.cause) == (locked.worker, "node_lost")
    assert lost.message == f"the lock of host '{os.uname().nodename}' is gone"
    assert isinstance(again, WorkerUp)
    assert again.node == locked.node
    assert again.worker != locked.worker
    assert pid_of(pool, again.worker) > 0
    assert pid_of(pool, free.worker) > 0


def test_a_worker_of_other_code_on_a_node_that_goes_is_no_error(cluster, make_pool, monkeypatch):
    monkeypatch.setattr(ray_pool, "code_version", lambda: "0.0.9 (code 0, Python 3.11.7)")
    pool = make_pool(address=cluster.address, cores=1)
    assert pool.wait(0.0) == []  # it is started
    (actor,) = pool._actors.values()
    pool._ray.wait([actor.calls[0]])
    head = {name: node for name, node in pool._cluster.nodes().items() if name != actor.place}
    monkeypatch.setattr(pool._cluster, "nodes", lambda: head)
    assert pool._look({}) == []
    assert pool._actors == {}


def test_two_pools_on_one_cluster_leave_each_other_alone(cluster, make_pool, tmp_path):
    program = f"""
        import sys, time
        sys.path.insert(0, {str(SUPPORT)!r})
        from pathlib import Path
        from pool_runners import Doing
        from qb_cluster.dispatch.ray_pool import RayPool

        pool = RayPool("elsewhere", Path({str(tmp_path)!r}, "others"), threads=1, cores=1,
            address={cluster.address!r}, import_paths=[{str(SUPPORT)!r}], make_runner=Doing)
        assert len(pool.wait(60)) == 1
        print("up", flush=True)
        sys.stdin.readline()
        assert pool.wait(0.1) == []
        pool.close()
        print("closed", flush=True)
    """
    pool = make_pool(address=cluster.address, cores=1)
    (up,) = wait_for(pool, 1)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "up\n"
        os.kill(pid_of(pool, up.worker), signal.SIGKILL)
        pool.start(up.worker, call_of("nothing"))
        lost, another = wait_for(pool, 2)
        assert isinstance(lost, WorkerLost)
        other.stdin.write("go on\n")
        other.stdin.flush()
        assert other.stdout.readline() == "closed\n"
        assert other.wait(30) == 0
    assert pid_of(pool, another.worker) > 0


def test_a_broken_environment_is_an_error_that_says_why(cluster, make_pool):
    pool = make_pool(address=cluster.address, cores=1, make_runner=pool_runners.broken)
    with pytest.raises(PoolError, match=r"do not come up on host .*this environment is broken"):
        wait_for(pool, 1)


def test_a_node_with_other_code_is_given_up_and_both_are_named(cluster, make_pool, monkeypatch):
    monkeypatch.setattr(ray_pool, "code_version", lambda: "0.0.9 (code 0, Python 3.11.7)")
    pool = make_pool(address=cluster.address, cores=1)
    both = (
        r"do not come up on host .*: it runs qb-cluster \S+ \(code [0-9a-f]{8}, Python \S+\), "
        r"and this driver 0\.0\.9 \(code 0, Python 3\.11\.7\); install the same on both, or "
        r"send this driver's with --ship-code"
    )
    with pytest.raises(PoolError, match=both):
        wait_for(pool, 1)


def test_workers_that_never_say_hello_are_an_error_in_the_end(cluster, make_pool):
    pool = make_pool(
        address=cluster.address, cores=1, make_runner=pool_runners.hanging, patience_s=1.5
    )
    with pytest.raises(PoolError, match=r"no worker came up within 1\.5 s"):
        wait_for(pool, 1)


def test_too_few_cores_are_an_error_in_the_end(cluster, make_pool):
    pool = make_pool(address=cluster.address, threads=64, patience_s=1.0)
    with pytest.raises(PoolError, match="no node with 64 cores came within 1 s"):
        wait_for(pool, 1)


def test_no_cluster_at_an_address_is_an_error(make_pool):
    with pytest.raises(PoolError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        make_pool(address="127.0.0.1:1")


def own_ray(make_pool):
    """A pool on a Ray of its own: it, its worker, and the processes of that Ray by name."""
    before = set(psutil.Process().children(recursive=True))
    pool = make_pool(cores=1)
    (up,) = wait_for(pool, 1)
    new = set(psutil.Process().children(recursive=True)) - before
    return pool, up, {process.name().split()[0]: process for process in new}


def test_running_out_of_memory_is_told_from_a_crash_even_if_ray_is_slow_to_say_so(
    make_pool, monkeypatch
):
    memory = psutil.virtual_memory()
    spare = 3_000_000_000  # the Ray that other tests share may still be starting processes
    limit = (memory.total - memory.available + spare) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.4f}")
    pool, up, processes = own_ray(make_pool)
    head, actor = processes["gcs_server"], pool._actors[up.worker]
    pool._look_at = float("inf")  # a look at the nodes would wait for the head
    head.suspend()

    def resume():
        until = time.monotonic() + 60
        while actor.doubt is None and time.monotonic() < until:
            time.sleep(0.01)
        head.resume()

    resuming = threading.Thread(target=resume)
    resuming.start()
    pool.start(up.worker, call_of(f"fill:{2 * spare}"))
    lost, another = wait_for(pool, 2)
    resuming.join()
    assert actor.doubt is not None, "it was known at once why the worker died"
    assert (lost.worker, lost.cause) == (up.worker, "oom"), lost
    assert isinstance(another, WorkerUp)


@pytest.mark.parametrize(
    ("process", "match"),
    [("raylet", "Ray has ended on this machine"), ("gcs_server", r"the head .* is gone")],
)
def test_when_ray_itself_is_gone_the_pool_says_so(make_pool, monkeypatch, process, match):
    monkeypatch.setattr(ray_pool, "HEAD_SILENT_S", 1.0)
    pool, _, processes = own_ray(make_pool)
    processes[process].kill()
    with pytest.raises(PoolError, match=match):
        wait_for(pool, 1, within_s=30.0)  # Ray itself ends this process after 60
