"""The shipped sweep."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from qb_cluster.plan import expand
from qb_cluster.spec import load_spec

DIGITS = Path(__file__).parents[2] / "sweeps" / "digits.yaml"
FRAMEWORKS = {
    "torch", "torchao", "tensorflow", "ai_edge_litert", "ai_edge_quantizer", "litert_torch",
    "onnx", "onnxruntime", "sklearn", "ray", "pandas", "pyarrow",
}  # fmt: skip


def test_the_digits_sweep_has_48_quantized_cells():
    cells = list(expand(load_spec(DIGITS)))
    quantized = [cell for cell in cells if not cell.is_baseline]
    assert len(quantized) == 2 * 3 * 8
    assert Counter(cell.backend.label for cell in quantized) == {
        "pytorch": 16,
        "tflite": 16,
        "onnxruntime": 16,
    }
    assert Counter(str(cell.bits) for cell in quantized) == {
        **dict.fromkeys(["w8", "w4", "w3", "w2"], 6),
        **dict.fromkeys(["w8a8", "w4a8"], 12),
    }
    assert all(cell.reason for cell in quantized if cell.execution != "native")


def test_planning_it_imports_no_framework_and_none_of_the_heavy_libraries():
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from qb_cluster.plan import expand, plan_lines\nfrom qb_cluster.spec import load_spec\n"
        f"list(plan_lines(expand(load_spec(Path({str(DIGITS)!r})))))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert FRAMEWORKS & set(done.stdout.split()) == set()
