import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

STRANGERS = sorted((Path(__file__).parent / "stranger").glob("*.py"))
LATENCY = "{warmup_s: 0.01, min_runs: 10, min_s: 0.02}"


class Place:
    """A stranger's folder, and qb run there as a user would."""

    def __init__(self, folder):
        self.folder = folder
        self._started = []
        for file in STRANGERS:
            shutil.copy(file, folder)

    def spec(self, text, name="sweep.yaml"):
        (self.folder / name).write_text(text)
        return name

    def command(self, *arguments):
        return [str(Path(sys.executable).parent / "qb"), *arguments]

    def qb(self, *arguments, env=None, timeout_s=240):
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def shell(self, line):
        """Run a line of bash, for what only a shell can do to qb."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def popen(self, *arguments, env=None, stderr=subprocess.DEVNULL):
        """Start qb; it ends with the test at the latest."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=os.environ | (env or {}),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
        )
        self._started.append(process)
        return process

    def hold(self, count=0):
        """From now on have all wait that quantizes, but the first ``count``, until ``go``."""
        (self.folder / "hold.new").write_text(str(len(self.log()) + count))
        (self.folder / "hold.new").rename(self.folder / "hold")

    def go(self):
        (self.folder / "hold").unlink()

    def interrupt(self, process, number=signal.SIGINT):
        """Send a signal to a run and wait until it says that it has heard; stderr is a pipe."""
        process.send_signal(number)
        next(line for line in process.stderr if "Finishing running cells" in line)

    def end(self):
        for process in self._started:
            with process:  # closes what it printed to, and waits
                process.kill()

    def results(self, out):
        frame = pd.read_parquet(self.folder / out / "results")
        assert frame["cell_id"].is_unique
        return frame

    def log(self):
        path = self.folder / "log.txt"
        return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.end()
