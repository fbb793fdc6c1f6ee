"""What this machine is, told by the standard library alone.

Python 3.8 and nothing installed are enough, and this file imports no other of ours: it is also
copied by itself to boards that hold neither.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

# Features that change which integer kernels a runtime picks, and with them int8 results.
_CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
# Boards name themselves in the device tree, PCs and virtual machines in their firmware's tables.
_BOARD_FILES = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
# What firmware says where its maker filled nothing in.
_NO_BOARD = (
    "", "default string", "none", "not specified", "system product name", "to be filled by o.e.m.",
    "unknown",
)  # fmt: skip


def describe_machine(root: str = "/") -> dict[str, Any]:
    """Describe the hardware and its system; JSON values, null where unknown.

    Args:
        root: where ``proc`` and ``sys`` are.

    Returns:
        ``host``, ``os``, ``arch``, ``cpu_model``, ``cpu_features`` (those that integer kernels
        are picked by), ``cores`` (logical), ``memory_bytes`` (physical), ``governor`` (of core
        0's clock) and ``board`` (its maker's name for it).
    """
    cpu = _cpuinfo(root)
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    return {
        "host": platform.node(),
        "os": platform.platform(),
        "arch": platform.machine(),
        "cpu_model": cpu.get("model name") or platform.processor() or None,
        "cpu_features": [name for name in _CPU_FEATURES if name in flags],
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(root),
        "governor": _read(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "board": _board(root),
    }


def _read(root: str, name: str) -> str | None:
    """Read a file of the system; device-tree texts end in a NUL."""
    try:
        return Path(root, name).read_text(encoding="utf-8", errors="replace").strip("\0 \t\n")
    except OSError:
        return None


def _cpuinfo(root: str) -> dict[str, str]:
    """Read the first processor's block of /proc/cpuinfo; empty where there is none."""
    first = (_read(root, "proc/cpuinfo") or "").split("\n\n", maxsplit=1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes(root: str) -> int | None:
    for line in (_read(root, "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal":
            return int(value.split()[0]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such system call, or no such name
        return None


def _board(root: str) -> str | None:
    for name in _BOARD_FILES:
        found = _read(root, name)
        if found is not None and found.lower() not in _NO_BOARD:
            return found
    return None
