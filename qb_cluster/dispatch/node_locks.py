"""One sweep at a time on a node, where the node says that it has a lock (``qb node`` does).

Ray's cores are no lock: a second sweep would take those that the first one leaves free, and each
would be noise in what the other times.
"""

import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qb_cluster.dispatch.events import Waiting
from qb_cluster.dispatch.ray_cluster import Node, RayCluster

PATIENCE_S: Final = 4.0
MOST_FAILURES: Final = 3
IDLE_S: Final = 10.0
_FIRST_S: Final = 1.0


class Holder:
    """Has the lock while it lives. Runs on the node, on no core."""

    def held(self) -> None:
        """Return: whoever can be called has started, and has the lock."""

    def stay(self) -> None:
        """Never return: that this call ends tells that the lock is gone."""
        threading.Event().wait()


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of asking for locks.

    Attributes:
        lost: ids of nodes whose lock was ours, and stopped being ours since locks were last taken.
            It may be ours again by now: another sweep may have had the node in between, so what
            was started there has to end in any case.
        waiting: one per node whose lock another sweep seems to have; a holder that starts slowly
            looks the same.
    """

    lost: frozenset[str]
    waiting: tuple[Waiting, ...]


class NodeLocks:
    """The locks that this sweep has or has asked for.

    Args:
        cluster: whose nodes they are.
        ray: the module, which this one does not import.
    """

    def __init__(self, cluster: RayCluster, ray: Any) -> None:
        self._cluster = cluster
        self._ray = ray
        self._holders: dict[str, Any] = {}
        self._asked: dict[str, tuple[Any, float]] = {}  # answers that are still to come, and since
        self._stays: dict[str, Any] = {}  # calls that end with the lock, of those that are ours
        self._lost: set[str] = set()  # locks that were ours, until the next call of take() tells
        self._busy_at: dict[str, float] = {}  # when a node was last not idle, or given back
        self._failures: Counter[str] = Counter()  # of holders that did not start
        self.failed: dict[str, str] = {}  # nodes whose lock cannot be had, and why

    def take(self, nodes: Mapping[str, Node], now: float) -> Taken:
        """Ask for the lock of every node that has one, and tell which locks were lost.

        Args:
            nodes: that the sweep can use, by id.
            now: seconds on any steady clock.
        """
        for gone in self._holders.keys() - nodes.keys():
            self._forget(gone)
        if self._stays:
            stays = {stay: node_id for node_id, stay in self._stays.items()}
            ended, _ = self._ray.wait(list(stays), num_returns=len(stays), timeout=0)
            for stay in ended:  # somebody killed the holder; others may have the lock by now
                self._forget(stays[stay])
        is_new = False
        for node in nodes.values():
            known = self._holders.keys() | self.failed.keys()
            if node.has_lock and node.node_id not in known:
                is_new = True
                holder = self._cluster.start_actor(Holder, (), node, 1, 0, has_lock=True)
                self._holders[node.node_id] = holder
                self._asked[node.node_id] = holder.held.remote(), now
        if self._asked:
            answers = {answer: node_id for node_id, (answer, _) in self._asked.items()}
            timeout = _FIRST_S if is_new else 0
            ready, _ = self._ray.wait(list(answers), num_returns=len(answers), timeout=timeout)
            for answer in ready:
                self._settle(answers[answer], answer)
        waiting = tuple(
            Waiting(
                f"node '{nodes[node_id].host}' is not free: another sweep uses it, or it is slow "
                "to start; waiting for it",
                is_taken=True,
            )
            for node_id in self._waited_for(now)
        )
        lost = frozenset(self._lost)
        self._lost.clear()
        return Taken(lost, waiting)

    def is_ours(self, node: Node) -> bool:
        """Tell whether workers may be started on a node."""
        return not node.has_lock or node.node_id in self._stays

    def give_back_idle(self, nodes: Mapping[str, Node], busy: Collection[str], now: float) -> None:
        """Let others have what has been idle for long, while this sweep waits for another node.

        Two sweeps, each with what the other needs, would wait for ever. Such a lock counts as
        lost. It is asked for again when locks are next taken.

        Args:
            nodes: that the sweep can use, by id.
            busy: ids of those where something runs.
            now: seconds on any steady clock.
        """
        is_waiting = bool(self._waited_for(now))
        for node_id, node in nodes.items():
            if node_id in busy or not self.is_ours(node):
                self._busy_at[node_id] = now
            elif node.has_lock and is_waiting and now - self._busy_at.get(node_id, now) > IDLE_S:
                self._forget(node_id)
                # It may be ours again before it is seen not to be.
                self._busy_at[node_id] = now

    def release(self) -> None:
        """Give all locks back."""
        for node_id in list(self._holders):
            self._forget(node_id)

    def _waited_for(self, now: float) -> list[str]:
        """Name the nodes whose lock has not come though its holder has had the time to start."""
        return [node for node, (_, since) in self._asked.items() if now - since > PATIENCE_S]

    def _settle(self, node_id: str, answer: Any) -> None:
        del self._asked[node_id]
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayError as error:  # it died: ask again, a few times
            del self._holders[node_id]
            self._failures[node_id] += 1
            if self._failures[node_id] >= MOST_FAILURES:
                self.failed[node_id] = str(error).strip().splitlines()[-1]
            return
        self._failures[node_id] = 0
        self._stays[node_id] = self._holders[node_id].stay.remote()

    def _forget(self, node_id: str) -> None:
        """Let go of a lock, or of the wish for it."""
        # Where only the connection broke, it lives on and keeps the lock: Ray does not end an
        # actor that nobody knows any more while a call of it runs.
        self._ray.kill(self._holders.pop(node_id))
        self._asked.pop(node_id, None)
        if self._stays.pop(node_id, None) is not None:
            self._lost.add(node_id)
