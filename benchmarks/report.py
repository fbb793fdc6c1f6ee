"""How long does `qb report` take, start of Python included?

Run it alone: ``make bench``. `sweeps/bits.yaml` is run into a temporary folder (452 cells, about a
minute), then reported on, each time as a process of its own: five times for the first time, where
`bits.svg` has to be drawn, and five times again, where it is kept. Beside it runs a process that
only imports pandas and matplotlib: what any report of this kind has to import. The limit holds for
the first report's median on an idle machine.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 3.0
RUNS = 5
SPEC = Path(__file__).parents[1] / "sweeps" / "bits.yaml"
UNAVOIDABLE = "import pandas, matplotlib.figure"


def seconds(*arguments: str) -> float:
    """Time a Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    """Print the table; the exit code says whether the limit held."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "bits"))
        qb = ("-m", "qb_cluster")
        subprocess.run([sys.executable, *qb, "run", str(SPEC), "--out", out], check=True)
        seconds(*qb, "report", out)  # what Python has to compile is compiled now
        first, again, imports = [], [], []
        for _ in range(RUNS):
            shutil.rmtree(Path(out, "report"))
            first.append(seconds(*qb, "report", out))
            again.append(seconds(*qb, "report", out))
            imports.append(seconds("-c", UNAVOIDABLE))
    for what, times in (
        ("qb report of sweeps/bits.yaml", first),
        ("the same once more", again),
        ("pandas and matplotlib alone", imports),
    ):
        print(f"{what:30} {statistics.median(times):5.2f} s ({min(times):.2f}–{max(times):.2f})")
    median = statistics.median(first)
    print(f"limit                          {LIMIT_S:5.2f} s")
    return 0 if median < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
