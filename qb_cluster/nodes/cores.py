"""Cores and threads of this process."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

# Every framework's own thread pool reads one of these when it is first imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CGROUP = Path("/sys/fs/cgroup")
_CFS = "quota", "period"


def available_cores() -> tuple[int, ...]:
    """Give the cores this process may use, in order; all of them where the OS cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_cores() -> tuple[int, ...]:
    """Give the cores this process may use, no more of them than it has time for; at least one."""
    cores, quota = available_cores(), cpu_quota()
    return cores if quota is None else cores[: max(1, int(quota))]


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Give the share of CPU time, in cores, that a container may use on whichever cores it is on.

    Args:
        cgroup: where the container sees its own control group.

    Returns:
        ``None`` where there is no such limit.
    """
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # the first version of control groups
        quota, period = ((cgroup / "cpu" / f"cpu.cfs_{n}_us").read_text() for n in _CFS)
        return None if int(quota) < 0 else int(quota) / int(period)
    return None


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[bool]:
    """Pin every thread of this process to ``cores``, and undo it afterwards.

    Yields:
        Whether it worked; a platform without affinity, or a core that is gone, gives False.
    """
    before = available_cores()
    worked = _pin(cores)
    try:
        yield worked
    finally:
        if worked:
            _pin(before)


@contextlib.contextmanager
def normal_niceness() -> Iterator[int]:
    """Raise this process to niceness 0 where that is allowed; yields the niceness it has."""
    process = psutil.Process()
    before = process.nice()
    if before > 0:
        with contextlib.suppress(psutil.AccessDenied):
            process.nice(0)
    try:
        yield process.nice()
    finally:
        if process.nice() != before:
            process.nice(before)


def _pin(cores: Sequence[int]) -> bool:
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        # A thread keeps the affinity it was born with, so setting the process's alone would
        # leave thread pools that exist already where they are.
        for thread in psutil.Process().threads():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(thread.id, cores)
    except OSError:
        return False
    return True
