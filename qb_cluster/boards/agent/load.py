"""How busy others keep the board while something is timed; ``nodes.load`` without psutil."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Load(NamedTuple):
    """A reading of the CPU clocks, in seconds; ``machine_s`` is ``None`` where none is kept."""

    machine_s: float | None
    own_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Load:
        """Read the clocks."""
        own = os.times()
        return cls(_machine_s(), own.user + own.system, own.elapsed)

    def foreign_cores(self, earlier: Load) -> float | None:
        """Give the cores that others kept busy, on average, since an earlier reading."""
        wall = self.wall_s - earlier.wall_s
        if self.machine_s is None or earlier.machine_s is None or wall <= 0:
            return None
        used = (self.machine_s - earlier.machine_s) - (self.own_s - earlier.own_s)
        return max(0.0, used / wall)


def _machine_s() -> float | None:
    """Give the CPU seconds that all processes have used since boot."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as file:
            ticks = [int(number) for number in file.readline().split()[1:9]]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guest time is in user's already
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")
