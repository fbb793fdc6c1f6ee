"""Locks on a cluster without a clock: holders start when the test, or a fast machine, lets them."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from qb_cluster.dispatch import ray_pool
from qb_cluster.dispatch.events import Waiting, WorkerLost, WorkerUp
from qb_cluster.dispatch.node_locks import IDLE_S, MOST_FAILURES, PATIENCE_S, Holder, NodeLocks
from qb_cluster.dispatch.ray_cluster import Node
from qb_cluster.dispatch.ray_pool import LOOK_EVERY_S, RayPool
from qb_cluster.dispatch.worker_process import Hello, WorkerProcess
from qb_cluster.nodes.code_version import code_version

OTHER = "another sweep"


class FakeRayError(Exception):
    pass


class FakeCall:
    def __init__(self, has_ended, has_failed, value=None):
        self.has_ended, self.has_failed, self.value = has_ended, has_failed, value


class FakeHolder:
    """Has started once it has the lock; keeps it while it is alive, connected or not."""

    def __init__(self):
        self.has_started, self.is_alive, self.is_connected = False, True, True
        held = FakeCall(lambda: self.has_started or not self.is_alive, lambda: not self.has_started)
        stay = FakeCall(lambda: not (self.is_alive and self.is_connected), lambda: True)
        self.held = SimpleNamespace(remote=lambda: held)
        self.stay = SimpleNamespace(remote=lambda: stay)


def fake_worker(node):
    """A worker that is up at once, and only ever says hello."""
    hello = Hello(node.host, 1, (0,), "", Path("nowhere"), code_version())
    answer = FakeCall(lambda: True, lambda: False, hello)
    remote = SimpleNamespace(remote=lambda: answer)
    return SimpleNamespace(hello=remote, tidy=remote, is_alive=True)


class FakeCluster:
    """A cluster, and the Ray that leads to it; the first in a node's queue has its lock."""

    exceptions = SimpleNamespace(
        RayError=FakeRayError,
        ActorUnavailableError=type("FakeUnavailableError", (FakeRayError,), {}),
    )

    def __init__(self, *nodes, is_fast=True):
        self.nodes = lambda: {node.node_id: node for node in nodes}
        self.is_own, self.own_node = False, "head"
        self.is_fast = is_fast  # whether a holder is up before anybody stops to wait for it
        self.queues = defaultdict(list)
        self.broken = set()  # nodes where no holder starts

    def start_actor(
        self, actor, arguments, node, threads, cores, gpus=0, *, has_lock=False, variables=None
    ):
        if actor is WorkerProcess:
            return fake_worker(node)
        assert (actor, cores, has_lock) == (Holder, 0, True)
        holder = FakeHolder()
        self.queues[node.node_id].append(holder)
        return holder

    def close(self):
        pass

    def start_holders(self):
        for node_id, queue in self.queues.items():
            if queue and queue[0] != OTHER:
                if node_id in self.broken:
                    self.kill(queue[0])
                else:
                    queue[0].has_started = True

    def kill(self, actor):
        actor.is_alive = False
        for queue in self.queues.values():
            if actor in queue:
                queue.remove(actor)

    def wait(self, calls, *, num_returns=1, timeout):
        if timeout and self.is_fast:
            self.start_holders()
        ready = [call for call in calls if call.has_ended()]
        return ready, [call for call in calls if call not in ready]

    def get(self, call):
        assert call.has_ended()
        if call.has_failed():
            raise FakeRayError("the actor died\nbecause of its environment\n")
        return call.value

    def holder(self, node_id):
        return self.queues[node_id][0]


def node_of(node_id, *, has_lock=True):
    return Node(node_id, f"host-{node_id}", 1, ("127.0.0.1", 1), {}, has_lock=has_lock)


N1, N2 = node_of("n1"), node_of("n2")
ONE, BOTH = {"n1": N1}, {"n1": N1, "n2": N2}


def locks_on(cluster):
    return NodeLocks(cluster, cluster)


def test_a_lost_lock_is_told_once_though_it_is_ours_again_in_the_same_call():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    assert not locks.is_ours(N1)
    assert locks.take(ONE, 0).lost == set()
    assert locks.is_ours(N1)
    cluster.kill(cluster.holder("n1"))
    assert locks.take(ONE, 2).lost == {"n1"}
    assert locks.is_ours(N1)
    assert locks.take(ONE, 4).lost == set()
    assert locks.is_ours(N1)


def test_a_lost_lock_is_told_once_and_is_not_ours_before_its_holder_is_up():
    cluster = FakeCluster(is_fast=False)
    locks = locks_on(cluster)
    locks.take(ONE, 0)
    assert not locks.is_ours(N1)
    cluster.start_holders()
    locks.take(ONE, 2)
    assert locks.is_ours(N1)
    cluster.kill(cluster.holder("n1"))
    for now in (4, 6):
        assert locks.take(ONE, now).lost == ({"n1"} if now == 4 else set())
        assert not locks.is_ours(N1)
    cluster.start_holders()
    assert locks.take(ONE, 8).lost == set()
    assert locks.is_ours(N1)


def test_a_lock_that_others_take_is_told_as_lost_and_as_waited_for_until_it_is_ours_again():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    locks.take(ONE, 0)
    cluster.queues["n1"].append(OTHER)
    cluster.kill(cluster.holder("n1"))
    taken = locks.take(ONE, 10)
    assert (taken.lost, taken.waiting) == ({"n1"}, ())  # whether others have it is not known yet
    taken = locks.take(ONE, 10 + PATIENCE_S + 1)
    assert taken.lost == set()
    assert [waiting.is_taken for waiting in taken.waiting] == [True]
    assert "node 'host-n1' is not free: another sweep uses it" in taken.waiting[0].text
    assert not locks.is_ours(N1)
    cluster.queues["n1"].remove(OTHER)
    cluster.start_holders()
    taken = locks.take(ONE, 20)
    assert (taken.lost, taken.waiting) == (set(), ())
    assert locks.is_ours(N1)


def test_a_lock_that_is_lost_twice_is_told_twice():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    locks.take(BOTH, 0)
    for now in (2, 4):
        cluster.kill(cluster.holder("n1"))
        assert locks.take(BOTH, now).lost == {"n1"}
        assert locks.is_ours(N1)
    assert locks.take(BOTH, 6).lost == set()


def test_a_node_that_vanishes_loses_its_lock_and_has_to_be_asked_again_when_it_is_back():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    locks.take(BOTH, 0)
    first = cluster.holder("n1")
    assert locks.take({"n2": N2}, 2).lost == {"n1"}
    assert not locks.is_ours(N1)
    assert locks.is_ours(N2)
    assert not first.is_alive, "it would keep the lock from us when the node is back"
    assert locks.take(BOTH, 4).lost == set()
    assert locks.is_ours(N1)


def test_a_node_that_vanishes_before_its_lock_came_is_no_loss():
    cluster = FakeCluster(is_fast=False)
    locks = locks_on(cluster)
    locks.take(ONE, 0)
    taken = locks.take({}, 2 * PATIENCE_S)
    assert (taken.lost, taken.waiting) == (set(), ())
    assert cluster.queues["n1"] == []


def test_a_lock_that_was_given_back_is_told_as_lost_though_nobody_took_it():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    cluster.queues["n2"].append(OTHER)
    locks.give_back_idle(BOTH, {}, 0)
    locks.take(BOTH, 0)
    now = IDLE_S + 1
    locks.give_back_idle(BOTH, {}, now)
    assert not locks.is_ours(N1)
    taken = locks.take(BOTH, now)
    assert taken.lost == {"n1"}
    assert ["n2" in waiting.text for waiting in taken.waiting] == [True]
    assert locks.is_ours(N1)
    # It has its time again, and what is busy is kept.
    locks.give_back_idle(BOTH, {}, now + IDLE_S)
    locks.give_back_idle(BOTH, {"n1"}, now + IDLE_S + 1)
    locks.give_back_idle(BOTH, {}, now + IDLE_S + 2)
    assert locks.is_ours(N1)
    assert locks.take(BOTH, now + IDLE_S + 2).lost == set()


def test_an_idle_node_is_kept_while_the_holder_of_another_one_merely_starts():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    locks.give_back_idle(ONE, {}, 0)
    locks.take(ONE, 0)
    cluster.is_fast = False
    now = 2 * IDLE_S
    locks.take(BOTH, now)
    assert not locks.is_ours(N2)
    locks.give_back_idle(BOTH, {}, now + PATIENCE_S)
    assert locks.is_ours(N1)
    locks.give_back_idle(BOTH, {}, now + PATIENCE_S + 1)  # by now others seem to have the other
    assert not locks.is_ours(N1)


def test_a_holder_that_does_not_start_is_started_a_few_times_then_its_node_has_failed():
    cluster = FakeCluster()
    cluster.broken.add("n1")
    locks = locks_on(cluster)
    for now in range(MOST_FAILURES):
        assert locks.failed == {}
        assert locks.take(BOTH, now).lost == set()
        assert not locks.is_ours(N1)
    assert locks.failed == {"n1": "because of its environment"}
    cluster.broken.clear()
    locks.take(BOTH, MOST_FAILURES)
    assert not locks.is_ours(N1)
    assert locks.is_ours(N2)


def test_a_lost_lock_whose_next_holders_do_not_start_is_told_once():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    locks.take(ONE, 0)
    cluster.broken.add("n1")
    cluster.kill(cluster.holder("n1"))
    assert [set(locks.take(ONE, now).lost) for now in range(3)] == [{"n1"}, set(), set()]
    assert not locks.is_ours(N1)


def test_a_holder_whose_connection_broke_does_not_keep_the_lock_from_us():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    locks.take(ONE, 0)
    cluster.holder("n1").is_connected = False
    assert locks.take(ONE, 2).lost == {"n1"}
    assert locks.is_ours(N1)
    assert len(cluster.queues["n1"]) == 1


def test_a_node_without_a_lock_is_always_ours():
    cluster = FakeCluster()
    locks = locks_on(cluster)
    free = node_of("free", has_lock=False)
    taken = locks.take({"free": free}, 0)
    assert (taken.lost, taken.waiting) == (set(), ())
    assert locks.is_ours(free)
    assert cluster.queues["free"] == []


@pytest.mark.parametrize("is_fast", [True, False])
def test_released_locks_are_free_for_others(is_fast):
    cluster = FakeCluster(is_fast=is_fast)
    locks = locks_on(cluster)
    locks.take(BOTH, 0)
    locks.release()
    assert [cluster.queues["n1"], cluster.queues["n2"]] == [[], []]


# The pool on top of them


class FakeTime:
    """Passes when somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def events_on(monkeypatch, tmp_path):
    """Start a pool on a fake cluster; gives a function that lets it look, and gives the events."""

    def start(cluster, **arguments):
        monkeypatch.setattr(ray_pool, "RayCluster", lambda *_, **__: cluster)
        monkeypatch.setattr(ray_pool, "time", FakeTime())
        pool = RayPool("the place", tmp_path, threads=1, **arguments)
        pool._ray = pool._locks._ray = cluster
        return lambda: [event for _ in range(2) for event in pool.wait(LOOK_EVERY_S)]

    return start


def kinds(events):
    return [(type(event), getattr(event, "worker", None)) for event in events]


@pytest.mark.parametrize("is_fast", [True, False])
def test_exactly_the_workers_under_a_lost_lock_end_and_others_start_once_it_is_back(
    events_on, is_fast
):
    cluster = FakeCluster(N1, node_of("free", has_lock=False))
    next_events = events_on(cluster)
    up = {event.node: event.worker for event in next_events()}
    assert up.keys() == {"n1", "free"}
    cluster.is_fast = is_fast
    for _ in range(2):
        cluster.kill(cluster.holder("n1"))
        events = next_events()
        if not is_fast:
            assert kinds(events) == [(WorkerLost, up["n1"])]
            assert {type(event) for event in next_events()} <= {Waiting}
            cluster.start_holders()
            events += next_events()
        lost, again = events
        assert kinds(events) == [(WorkerLost, up["n1"]), (WorkerUp, again.worker)]
        assert (lost.cause, lost.message) == ("node_lost", "the lock of host 'host-n1' is gone")
        assert again.node == "n1"
        assert again.worker not in up.values()
        up["n1"] = again.worker
    assert next_events() == []


def test_nothing_starts_on_a_node_that_others_took_until_its_lock_comes_back(events_on):
    cluster = FakeCluster(N1)
    next_events = events_on(cluster)
    (up,) = next_events()
    cluster.queues["n1"].append(OTHER)
    cluster.kill(cluster.holder("n1"))
    assert kinds(next_events()) == [(WorkerLost, up.worker)]
    told = [event for _ in range(5) for event in next_events()]
    assert {type(event) for event in told} == {Waiting}
    cluster.queues["n1"].remove(OTHER)
    cluster.start_holders()
    (again,) = next_events()
    assert isinstance(again, WorkerUp)
    assert (again.node, again.worker != up.worker) == ("n1", True)


def test_workers_have_their_time_to_come_up_however_long_others_had_the_node(events_on):
    cluster = FakeCluster(N1)
    cluster.queues["n1"].append(OTHER)
    next_events = events_on(cluster, patience_s=30.0)
    told = [event for _ in range(50) for event in next_events()]
    assert {type(event) for event in told} == {Waiting}
    cluster.queues["n1"].remove(OTHER)
    cluster.start_holders()
    (up,) = next_events()
    assert isinstance(up, WorkerUp)
