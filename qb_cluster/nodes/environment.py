"""What a result depends on besides the cell: machine, interpreter and libraries."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from qb_cluster.nodes.accelerators import accelerators, visible
from qb_cluster.nodes.machine import describe_machine

_ALWAYS = ("qb-cluster", "numpy", "scipy", "ray")


def describe(distributions: Iterable[str]) -> dict[str, Any]:
    """Describe this process's machine and libraries; JSON values, null where unknown.

    Args:
        distributions: packages whose versions matter, besides our own.
    """
    machine = describe_machine()
    if machine["memory_bytes"] is None:
        machine["memory_bytes"] = psutil.virtual_memory().total
    return machine | {
        "python": platform.python_version(),
        "libraries": {name: version_of(name) for name in sorted({*_ALWAYS, *distributions})},
    }


@cache
def fingerprint(gpus: int = 0) -> str:
    """Give 16 hex digits that name the hardware which timings depend on.

    Processor, its features, cores, memory in whole GiB; neither the host's name nor libraries. With
    a GPU, its name, memory and driver too.

    Args:
        gpus: 1 for what is timed on the GPU that this process sees.
    """
    cpu = fingerprint_of(describe(()))
    gpu = own_gpu() if gpus else None
    if gpu is None:
        return cpu
    return env_id({"cpu": cpu} | {key: gpu[key] for key in ("name", "memory_bytes", "driver")})


@cache
def own_gpu() -> dict[str, Any] | None:
    """Describe the GPU that this process sees, the first one; ``None`` where NVML tells of none."""
    seen = visible(accelerators(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return asdict(seen[0]) if seen else None


def fingerprint_of(machine: Mapping[str, Any]) -> str:
    """Give the fingerprint of a machine that was described by ``machine.describe_machine``."""
    named = {key: machine[key] for key in ("arch", "cpu_model", "cpu_features", "cores")}
    return env_id(named | {"memory_gib": round((machine["memory_bytes"] or 0) / 2**30)})


def env_id(description: dict[str, Any]) -> str:
    """Give 16 hex digits that name a description."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def version_of(distribution: str) -> str | None:
    """Give the version of a distribution; ``None`` where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
