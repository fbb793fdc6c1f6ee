"""The Ray that workers run in: one of our own on this machine, or a cluster that exists."""

import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from qb_cluster.errors import PoolError
from qb_cluster.nodes.cores import THREAD_VARIABLES

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 0.5
# Read by Ray when it is imported or starts its processes.
_RAY_SETTINGS = {
    # Workers start at niceness 15 by default: any foreign process would push timing aside.
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive.

    Attributes:
        cores: how many may be used.
        address: host and port that its Ray listens at.
        labels: what it was said to be when it was started.
    """

    node_id: str
    host: str
    cores: int
    address: tuple[str, int]
    labels: Mapping[str, str]


class RayCluster:
    """A connection to Ray.

    Args:
        address: of a cluster that exists, ``host:port`` or ``auto`` for the one this machine is
            a node of; ``None`` starts a Ray of our own on this machine.
        cores: the most cores to use on a node; ``None`` is all that it has.

    Raises:
        PoolError: Ray does not start, or the cluster cannot be reached.
    """

    def __init__(self, address: str | None, cores: int | None) -> None:
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray: Any = ray
        self._cores = cores
        self.is_own = address is None
        own = {"num_cpus": cores, "include_dashboard": False} if self.is_own else {}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address="local" if address is None else _answering(address),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                **own,
            )
        except Exception as error:
            raise PoolError(_no_ray(address, error)) from error
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own there, which just exits
        # Ray's own notices of dead workers are printed even with log_to_driver=False, and no
        # public setting stops them. Such a death is a typed row here, with a better message.
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001
        context = ray.get_runtime_context()
        self.own_node: str = context.get_node_id()
        self._head = _split(context.gcs_address)

    def nodes(self) -> dict[str, Node]:
        """Give the nodes that are alive, by id.

        A node whose Ray was killed is told by its closed port: Ray's own list shows it as alive
        for another 14 s, and calls to its workers hang as long.

        Raises:
            PoolError: Ray has ended on this machine.
            OSError: the head does not answer.
        """
        # Without its head, Ray would block in the next line, and end this process after 60 s.
        socket.create_connection(self._head, PROBE_TIMEOUT_S).close()
        nodes = [self._node(entry) for entry in self._ray.nodes() if entry["Alive"]]
        with ThreadPoolExecutor(max_workers=min(32, len(nodes) + 1)) as threads:
            refused = list(threads.map(_refuses, [node.address for node in nodes]))
        alive = [node for node, is_closed in zip(nodes, refused, strict=True) if not is_closed]
        if self.own_node not in {node.node_id for node in alive}:
            raise PoolError(
                "Ray has ended on this machine; finished cells are kept: run the same command again"
            )
        return {node.node_id: node for node in alive}

    def start_actor(
        self, actor: type, arguments: Sequence[Any], node: Node, threads: int, cores: int
    ) -> Any:
        """Start an actor on a node, and only there; gives its handle.

        It is never restarted and its calls are never retried: only then does Ray say what really
        ended it, and attempts stay the scheduler's to count.

        Args:
            actor: its class.
            arguments: of its constructor.
            node: where.
            threads: the most threads of a numerical library.
            cores: cores that are its own.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
        # Inductor compiles in a pool of processes of its own otherwise, beside what is timed.
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        # Zero GPUs asked for does not hide them by itself.
        environment["CUDA_VISIBLE_DEVICES"] = ""
        options = self._ray.remote(actor).options(
            num_cpus=cores,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        )
        return options.remote(*arguments)

    def close(self) -> None:
        """Leave the cluster; end it if it is our own."""
        self._ray.shutdown()

    def _node(self, entry: Mapping[str, Any]) -> Node:
        declared = int(entry["Resources"].get("CPU", 0))
        return Node(
            entry["NodeID"],
            entry["NodeManagerHostname"],
            declared if self._cores is None else min(declared, self._cores),
            (entry["NodeManagerAddress"], entry["NodeManagerPort"]),
            dict(entry["Labels"]),
        )


def _answering(address: str) -> str:
    """Give the ``host:port`` of a cluster's head, once it is known that somebody listens there.

    Ray would try for five minutes.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die  # what "auto" means

    found: str = canonicalize_bootstrap_address_or_die(address)
    socket.create_connection(_split(found), CONNECT_TIMEOUT_S).close()
    return found


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # silence proves nothing: Ray's own health check decides
        pass
    return False


def _no_ray(address: str | None, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if "Version mismatch" in str(error):  # Ray's own check, of its version and Python's
        told = " ".join(str(error).split())
        return f"the Ray cluster at '{address}' is not of this driver's kind: {told}"
    if address is None:
        return f"Ray does not start ({reason}); `--pool inline` runs the sweep without it"
    return (
        f"there is no Ray cluster at '{address}', or this machine is not a node of it ({reason}); "
        "join it with `ray start --address=HOST:PORT` first"
    )
