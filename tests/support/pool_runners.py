"""What workers run in tests of pools: each task's model says what is to happen to it."""

import ctypes
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from qb_cluster.contracts import Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Doing:
    """Does what ``model.target`` says; ``values`` of its outcomes say who did it."""

    def __init__(self, place):
        self.place = place

    def run(self, task):
        what, _, how = task.cell.model.target.partition(":")
        getattr(self, what)(how)
        values = {"pid": os.getpid(), "place": self.place}
        return Outcome(task.cell.cell_id, task.stage, "ok", NOW, NOW, values)

    def nothing(self, how):
        pass

    def say(self, how):
        sys.stdout.write(how + "\n")

    def hang(self, how):
        """Say where it is, then do nothing for long."""
        Path(how).write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(600)

    def segfault(self, how):
        ctypes.string_at(0)

    def loop_in_c(self, how):
        """Never come back, never let Python run, and have a child that lives on its own."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        written = Path(how + ".part")
        written.write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
        written.rename(how)
        ctypes.PyDLL(None).pause()  # PyDLL keeps the interpreter lock

    def fill(self, how):
        """Take so many bytes of memory."""
        self.memory = b"x" * int(how)
        time.sleep(600)


def broken(place):
    raise RuntimeError("this environment is broken")


def hanging(place):
    time.sleep(600)
