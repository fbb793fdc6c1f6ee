"""Planning a million cells: when does the first line come, what does a cell cost, what memory?

Run it alone: ``make bench``. Limits: first line within a second of the start of the process, 30 µs
a cell, 50 MB of memory beyond what the first line needed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MODELS, SETS = 1_000, 18
LIMITS = {"first line, s": 1.0, "a cell, µs": 30.0, "memory growth, MB": 50.0}
SPEC = f"""
sweep: million
models: [{", ".join(f'{{name: "m:f", label: m{i}, options: {{i: {i}}}}}' for i in range(MODELS))}]
datasets: [{", ".join(f'{{name: "m:f", label: d{i}, options: {{i: {i}}}}}' for i in range(SETS))}]
schemes: [weight_only, dynamic, static]
bits: [w2, w3, w4, w5, w6, w7, w8, w2a8, w3a8, w4a8, w8a8, w8a16]
backends: [pytorch, tflite, onnxruntime]
"""


def main() -> int:
    """Print the table; the exit code says whether every limit held."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "m.py").write_text("def f(i): ...\n")
        Path(folder, "spec.yaml").write_text(SPEC)
        qb = Path(sys.executable).parent / "qb"
        began = time.perf_counter()
        plan = subprocess.Popen([qb, "plan", "spec.yaml"], cwd=folder, stdout=subprocess.PIPE)
        process = psutil.Process(plan.pid)
        assert plan.stdout is not None
        plan.stdout.readline()
        first = time.perf_counter() - began
        memory_at_first = process.memory_info().rss
        peak, lines = memory_at_first, 1
        for lines, _ in enumerate(plan.stdout, start=2):
            if lines % 50_000 == 0:
                peak = max(peak, process.memory_info().rss)
        total = time.perf_counter() - began
        plan.wait()
    cells = lines - 2  # a heading and a summary
    measured = {
        "first line, s": first,
        "a cell, µs": (total - first) / cells * 1e6,
        "memory growth, MB": (peak - memory_at_first) / 1e6,
    }
    print(f"qb plan of {cells:,} cells: {total:.1f} s, exit {plan.returncode}\n")
    print(f"{'':<20}{'measured':>10}{'limit':>10}")
    for name, value in measured.items():
        print(f"{name:<20}{value:>10.2f}{LIMITS[name]:>10.2f}")
    held = all(value <= LIMITS[name] for name, value in measured.items())
    print("\nevery limit held" if held else "\na limit was missed")
    return 0 if held and plan.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
