"""The shipped sweeps, and the examples in their documentation."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.plan import check_size, expand
from qb_cluster.spec import label_of, load_spec

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "sweeps" / "digits.yaml"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL)
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


@pytest.mark.parametrize("path", sorted(ROOT.glob("sweeps/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_sweep_can_be_planned_and_most_of_it_can_run(path):
    spec = load_spec(path)
    check_size(spec)
    cells = list(expand(spec))
    assert len({cell.cell_id for cell in cells}) == len(cells)
    assert sum(cell.execution is not None for cell in cells) > len(cells) / 2


def test_the_bits_sweep_is_2_to_16_bits_by_granularity_and_by_calibration():
    cells = [c for c in expand(load_spec(DIGITS.with_name("bits.yaml"))) if not c.is_baseline]
    assert {c.execution for c in cells} == {"simulated"}
    assert not any(c.is_timed for c in cells)
    widths = set(range(2, 17))
    found = {}
    for cell in cells:
        key = (cell.model.label, cell.scheme.label, calibration_label(cell.calibration))
        found.setdefault(key, set()).add(cell.bits.weight)
    granularities = ("per_tensor", "per_channel", "per_group")
    assert set(found) == {
        (model, f"{scheme}-{granularity}", calibration)
        for model in ("digits-cnn", "digits-mlp")
        for granularity in granularities
        for scheme, calibrations in {
            "weight_only": ["none"],
            "static": ["minmax", "percentile[99.9]", "mse", "entropy"],
        }.items()
        for calibration in calibrations
    }
    assert all(bits == widths for bits in found.values())


def test_the_examples_of_the_documentation_are_right(load):
    schemes, calibration, devices, rules = EXAMPLES
    text = DIGITS.read_text()
    assert len(list(expand(load(text + calibration + rules)))) > len(list(expand(load(text))))
    labels = [s.ref.label for s in load(re.sub(r"schemes: .*\n", schemes, text)).grid.scheme]
    assert "groups of 32" in labels
    named = [label_of(device) for device in load(text + devices).devices]
    assert named == ["cpu", "cpu[threads=2]", "rpi5", "pi-zero"]
