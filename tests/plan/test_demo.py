"""What ``sweeps/demo.yaml`` plans."""

from pathlib import Path

import pytest

from qb_cluster.plan import expand
from qb_cluster.spec import load_spec

BACKENDS = ("pytorch", "tflite", "onnxruntime")
MODELS = ("digits-resnet", "digits-mobilenet")


@pytest.fixture(scope="module")
def cells():
    return list(expand(load_spec(Path(__file__).parents[2] / "sweeps" / "demo.yaml")))


def test_it_has_at_most_40_cells(cells):
    assert 30 <= len(cells) <= 40


def test_static_w8a8_is_native_for_both_models_on_every_backend(cells):
    found = {
        (cell.model.label, cell.backend.label): cell.execution
        for cell in cells
        if not cell.is_baseline and (cell.scheme.label, str(cell.bits)) == ("static", "w8a8")
    }
    assert found == dict.fromkeys(((m, b) for m in MODELS for b in BACKENDS), "native")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_static_w8a8_is_the_first_cell_after_each_baseline(cells, model, backend):
    group = [c for c in cells if (c.model.label, c.backend.label) == (model, backend)]
    assert group[0].is_baseline
    assert (group[1].scheme.label, str(group[1].bits)) == ("static", "w8a8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_other_schemes_go_down_to_widths_that_fail(cells, backend):
    found = {
        (cell.scheme.label, str(cell.bits))
        for cell in cells
        if not cell.is_baseline and cell.backend.label == backend
    }
    dynamic, weights = ("dynamic", "w8a8"), {("weight_only", bits) for bits in ("w8", "w4", "w2")}
    assert found == {("static", "w8a8"), dynamic, *weights}


def test_every_cell_is_judged_on_all_examples_and_timed_in_25_blocks(cells):
    assert {cell.measure.examples for cell in cells} == {None}
    assert {cell.measure.latency.min_runs for cell in cells} == {50}  # two per arm and block
    assert all(cell.is_timed for cell in cells)
