"""What this node says about itself when it joins a cluster."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from qb_cluster.nodes import cores, environment
from qb_cluster.nodes.accelerators import Accelerator, accelerators, unseen_driver, visible
from qb_cluster.nodes.labels import LOCK, node_labels
from qb_cluster.nodes.node_config import NodeConfig, load_node_config
from qb_cluster.nodes.runtimes import installed_runtimes

_QUOTA: Final = (
    "this container has {quota:g} cores' worth of time on {cores} cores, and is stopped when it is "
    "used up: latencies will be noisy; give it cores of its own (on Kubernetes whole CPUs, "
    "requests equal to limits, and the kubelet's static CPU manager)"
)


@dataclass(frozen=True, slots=True)
class SelfDescription:
    """A node as it is.

    Attributes:
        machine: as ``environment.describe`` tells.
        cores: that this process, and so a Ray it starts, may use: no more than its quota.
        gpus: likewise.
        labels: what it is.
        resources: its lock, once: a sweep has the node, its GPUs too, to itself.
        config: what its owner says.
        warnings: sentences that its owner should read.
    """

    machine: Mapping[str, Any]
    cores: int
    gpus: tuple[Accelerator, ...]
    labels: Mapping[str, str]
    resources: Mapping[str, int]
    config: NodeConfig
    warnings: tuple[str, ...]

    def ray_arguments(self) -> list[str]:
        """Give the arguments of ``ray start``.

        None has a space or a character of file patterns, so ``ray start $(qb node)`` needs no
        quotes. The JSON of ``--resources`` has its own, so ``eval`` would break it.
        """
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items())
        return [
            f"--num-cpus={self.cores}",
            f"--num-gpus={len(self.gpus)}",
            f"--labels={labels}",
            f"--resources={json.dumps(dict(self.resources), separators=(',', ':'))}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Give all of it as JSON values."""
        return {
            "machine": dict(self.machine),
            "num_cpus": self.cores,
            "num_gpus": len(self.gpus),
            "accelerators": [asdict(gpu) for gpu in self.gpus],
            "labels": dict(self.labels),
            "resources": dict(self.resources),
            "environments": {name: str(path) for name, path in self.config.environments.items()},
            "ray_arguments": self.ray_arguments(),
        }


def describe_this_node() -> SelfDescription:
    """Find out what this node is.

    Raises:
        NodeConfigError: the file of its owner is wrong.
    """
    config = load_node_config()
    machine = environment.describe(())
    gpus = visible(accelerators(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return SelfDescription(
        machine=machine,
        cores=len(cores.usable_cores()),
        gpus=tuple(gpus),
        labels=node_labels(machine, gpus, installed_runtimes(config), config.labels),
        resources={LOCK: 1},
        config=config,
        warnings=node_warnings(),
    )


def node_warnings() -> tuple[str, ...]:
    """Give sentences that this node's owner should read: what will be missing, or noisy."""
    count, quota = len(cores.available_cores()), cores.cpu_quota()
    told = [unseen_driver()]
    if quota is not None and quota < count:
        told.append(_QUOTA.format(quota=quota, cores=count))
    return tuple(warning for warning in told if warning)
