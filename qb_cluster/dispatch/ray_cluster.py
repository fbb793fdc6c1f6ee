"""The Ray that workers run in: one of our own on this machine, or a cluster that exists."""

import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qb_cluster.contracts import Device
from qb_cluster.dispatch import ray_access
from qb_cluster.dispatch.ray_address import find_head, split_address
from qb_cluster.errors import PoolError
from qb_cluster.nodes.cores import THREAD_VARIABLES
from qb_cluster.nodes.labels import LOCK

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
        gpus: how many may be used.
        has_lock: whether a sweep is meant to have it to itself.
    """

    node_id: str
    host: str
    cores: int
    address: tuple[str, int]
    labels: Mapping[str, str]
    gpus: int = 0
    has_lock: bool = False

    def can_be(self, devices: Sequence[Device]) -> bool:
        """Tell whether it has the labels of any of these devices, or of none in particular."""
        return not devices or any(
            all(self.labels.get(label) == value for label, value in device.labels)
            for device in devices
        )

    def workers(self, threads: int, *, on_gpus: bool, on_cpus: bool) -> tuple[int, int]:
        """Say how many workers of so many threads it has room for: with a GPU, and without."""
        shares = self.cores // threads
        with_gpu = min(self.gpus, shares) if on_gpus else 0
        # At least one without, or their cells would wait for ever.
        return with_gpu, max(min(1, shares), shares - with_gpu) if on_cpus else 0


class RayCluster:
    """A connection to Ray.

    Args:
        address: of a cluster that exists, ``host:port`` or ``auto`` for the one this machine is
            a node of; ``None`` starts a Ray of our own on this machine.
        cores: the most cores to use on a node; ``None`` is all that it has.
        code: a zip that workers import from, and run in the folder of; see ``shipped_code``.
        allow_unauthenticated: whether to use a cluster that others can reach and run code on.
        labels: what this machine is, for a Ray of our own.

    Raises:
        PoolError: Ray does not start, or the cluster cannot be reached, is of other versions, is
            open to anybody, or does not take our token.
    """

    def __init__(
        self,
        address: str | None,
        cores: int | None,
        *,
        code: Path | None = None,
        allow_unauthenticated: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        if code is not None:  # a job of Ray's sent its folder already, which the code has too
            os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise PoolError(
                f"Ray is not installed in this Python ({error}): `pip install ray`, or run the "
                "sweep without it by --pool inline"
            ) from error
        self._ray: Any = ray
        self._cores = cores
        self.is_own = address is None
        self._auth_mode = os.environ.get(ray_access.AUTH_MODE)
        own: dict[str, Any] = {}
        if self.is_own:
            own = {"num_cpus": cores, "include_dashboard": False, "labels": dict(labels or {})}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            if address is None:
                ray_access.prepare_own()
            ray.init(
                address="local" if address is None else _entered(address, allow_unauthenticated),
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                runtime_env=None if code is None else {"working_dir": str(code)},
                **own,
            )
        except PoolError:
            ray_access.set_auth_mode(self._auth_mode)
            raise
        except Exception as error:
            ray_access.set_auth_mode(self._auth_mode)
            raise PoolError(_no_ray(address, error)) from error
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own there, which just exits
        # Ray's own notices of dead workers are printed even with log_to_driver=False, and no
        # public setting stops them. Such a death is a typed row here, with a better message.
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001
        context = ray.get_runtime_context()
        self.own_node: str = context.get_node_id()
        self._head = split_address(context.gcs_address)

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
        self,
        actor: type,
        arguments: Sequence[Any],
        node: Node,
        threads: int,
        cores: int,
        gpus: int = 0,
        *,
        has_lock: bool = False,
        variables: Mapping[str, str] | None = None,
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
            gpus: GPUs that are its own; it sees no others.
            has_lock: whether the node's lock is its own; until it is, the actor does not start.
            variables: more of its environment.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        environment = dict(variables or {}) | dict.fromkeys(THREAD_VARIABLES, str(threads))
        # Inductor compiles in a pool of processes of its own otherwise, beside what is timed.
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts, whom we ask about them
        if not gpus:  # asking for none does not hide them by itself
            environment["CUDA_VISIBLE_DEVICES"] = ""
        options = self._ray.remote(actor).options(
            num_cpus=cores,
            num_gpus=gpus,
            resources={LOCK: 1} if has_lock else {},
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        )
        return options.remote(*arguments)

    def close(self) -> None:
        """Leave the cluster; end it if it is our own."""
        self._ray.shutdown()
        ray_access.set_auth_mode(self._auth_mode)

    def _node(self, entry: Mapping[str, Any]) -> Node:
        declared = int(entry["Resources"].get("CPU", 0))
        return Node(
            entry["NodeID"],
            entry["NodeManagerHostname"],
            declared if self._cores is None else min(declared, self._cores),
            (entry["NodeManagerAddress"], entry["NodeManagerPort"]),
            dict(entry["Labels"]),
            int(entry["Resources"].get("GPU", 0)),
            LOCK in entry["Resources"],
        )


def _entered(address: str, allow_unauthenticated: bool) -> str:
    """Give the ``host:port`` of a cluster's head, once it is known that it may be used."""
    found = find_head(address)
    access = ray_access.knock(found)
    if not allow_unauthenticated:
        ray_access.refuse_open(found, access)
    ray_access.refuse_versions(found, access)
    return found


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
    if address is None:
        return f"Ray does not start ({reason}); `--pool inline` runs the sweep without it"
    return (
        f"there is no Ray cluster at '{address}', or this machine is not a node of it ({reason}); "
        "join it with `ray start --address=HOST:PORT` first"
    )
