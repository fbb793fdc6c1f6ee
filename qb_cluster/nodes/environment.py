"""What a result depends on besides the cell: machine, interpreter and libraries."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

# Features that change which integer kernels a runtime picks, and with them int8 results.
_CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
_ALWAYS = ("qb-cluster", "numpy", "scipy", "ray")


def describe(distributions: Iterable[str]) -> dict[str, Any]:
    """Describe this process's machine and libraries; JSON values, null where unknown.

    Args:
        distributions: packages whose versions matter, besides our own.
    """
    cpu = _cpuinfo()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    return {
        "host": platform.node(),
        "os": platform.platform(),
        "arch": platform.machine(),
        "cpu_model": cpu.get("model name") or platform.processor() or None,
        "cpu_features": [name for name in _CPU_FEATURES if name in flags],
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in sorted({*_ALWAYS, *distributions})},
    }


@cache
def fingerprint() -> str:
    """Give 16 hex digits that name the hardware which timings depend on.

    Processor, its features, cores, memory in whole GiB; neither the host's name nor libraries.
    """
    hardware = describe(())
    named = {key: hardware[key] for key in ("arch", "cpu_model", "cpu_features", "cores")}
    return env_id(named | {"memory_gib": round(hardware["memory_bytes"] / 2**30)})


def env_id(description: dict[str, Any]) -> str:
    """Give 16 hex digits that name a description."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _cpuinfo() -> dict[str, str]:
    """Read the first processor's block of /proc/cpuinfo; empty where there is none."""
    first = (_read("/proc/cpuinfo") or "").split("\n\n", maxsplit=1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
