"""One sweep at a time on a node, where the node says that it has a lock (``qb node`` does).

Ray's cores are no lock: a second sweep would take those that the first one leaves free, and each
would be noise in what the other times.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from qb_cluster.dispatch.events import Waiting
from qb_cluster.dispatch.ray_cluster import Node, RayCluster

PATIENCE_S: Final = 4.0
_FIRST_S: Final = 1.0


class Holder:
    """Has the lock while it lives. Runs on the node, on no core."""

    def held(self) -> None:
        """Return: whoever can be called has started, and has the lock."""


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

    def take(self, nodes: Mapping[str, Node]) -> list[Waiting]:
        """Ask for the lock of every node that has one; gives those that others seem to have."""
        for gone in self._holders.keys() - nodes.keys():
            del self._holders[gone]
            self._asked.pop(gone, None)
        is_new = False
        for node in nodes.values():
            if node.has_lock and node.node_id not in self._holders:
                is_new = True
                holder = self._cluster.start_actor(Holder, (), node, 1, 0, has_lock=True)
                self._holders[node.node_id] = holder
                self._asked[node.node_id] = holder.held.remote(), time.monotonic()
        if self._asked:
            answers = {answer: node_id for node_id, (answer, _) in self._asked.items()}
            timeout = _FIRST_S if is_new else 0
            ready, _ = self._ray.wait(list(answers), num_returns=len(answers), timeout=timeout)
            for answer in ready:
                self._settle(answers[answer], answer)
        late = time.monotonic() - PATIENCE_S
        return [
            Waiting(
                f"node '{nodes[node_id].host}' is used by another sweep; waiting until it is free"
            )
            for node_id, (_, since) in self._asked.items()
            if since < late
        ]

    def is_ours(self, node: Node) -> bool:
        """Tell whether workers may be started on a node."""
        return not node.has_lock or (
            node.node_id in self._holders and node.node_id not in self._asked
        )

    def release(self) -> None:
        """Give all locks back."""
        for holder in self._holders.values():
            self._ray.kill(holder)
        self._holders.clear()
        self._asked.clear()

    def _settle(self, node_id: str, answer: Any) -> None:
        del self._asked[node_id]
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayError:  # it died: ask again
            del self._holders[node_id]
