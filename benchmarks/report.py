"""How long does `qb report` take, start of Python included?

Run it alone: ``make bench``. `sweeps/bits.yaml` is run into a temporary folder (452 cells, about a
minute), then reported on five times, each as a process of its own, beside a process that only
imports pandas and matplotlib: what any report of this kind has to import. The limit holds for the
median on an idle machine.
"""

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
        report = [seconds(*qb, "report", out) for _ in range(RUNS + 1)][1:]
        imports = [seconds("-c", UNAVOIDABLE) for _ in range(RUNS)]
    median, floor = statistics.median(report), statistics.median(imports)
    print(f"qb report of sweeps/bits.yaml  {median:5.2f} s ({min(report):.2f}–{max(report):.2f})")
    print(f"pandas and matplotlib alone    {floor:5.2f} s")
    print(f"limit                          {LIMIT_S:5.2f} s")
    return 0 if median < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
