"""What a result depends on besides the cell: machine, interpreter and libraries."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

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
def fingerprint() -> str:
    """Give 16 hex digits that name the hardware which timings depend on.

    Processor, its features, cores, memory in whole GiB; neither the host's name nor libraries.
    """
    return fingerprint_of(describe(()))


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
