"""Foreign load: how busy others keep this machine while something is measured."""

import os
from dataclasses import dataclass

import psutil

BUSY_CORES = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """A reading of the CPU clocks.

    Attributes:
        machine_s: CPU seconds that all processes have used since boot.
        own_s: CPU seconds that this process has used.
        wall_s: seconds since boot.
    """

    machine_s: float
    own_s: float
    wall_s: float

    @classmethod
    def now(cls) -> "Load":
        """Read the clocks."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # On Linux guest time is counted in user time already.
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = os.times()
        return cls(sum(times) - idle - guest, own.user + own.system, own.elapsed)

    def foreign_cores(self, earlier: "Load") -> float:
        """Give the cores that others kept busy, on average, since an earlier reading."""
        wall = self.wall_s - earlier.wall_s
        if wall <= 0:
            return 0.0
        used = (self.machine_s - earlier.machine_s) - (self.own_s - earlier.own_s)
        return max(0.0, used / wall)
