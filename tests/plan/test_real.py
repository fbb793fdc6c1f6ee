"""What ``sweeps/real.yaml`` plans."""

from pathlib import Path

import pytest

from qb_cluster.catalog import plugins
from qb_cluster.plan import expand
from qb_cluster.spec import load_spec

BACKENDS = {"pytorch", "tflite", "onnxruntime"}
SCHEMES = {"weight_only w8", "weight_only w4", "dynamic w8a8", "static w8a8"}
OF_FILES = {
    "magika": {"onnxruntime"},
    "text-recogniser": {"onnxruntime"},
    "angle-classifier": {"onnxruntime"},
    "basic-pitch-onnx": {"onnxruntime"},
    "basic-pitch-tflite": {"tflite"},
}
"""Models that are files, and the backends that take such files."""


@pytest.fixture(scope="module")
def cells():
    return list(expand(load_spec(Path(__file__).parents[2] / "sweeps" / "real.yaml")))


def test_every_backend_that_takes_a_model_has_every_scheme_of_it(cells):
    found = {}
    for cell in cells:
        if not cell.is_baseline:
            schemes = found.setdefault((cell.model.label, cell.backend.label), set())
            schemes.add(f"{cell.scheme.label} {cell.bits}")
    models = {model for model, _ in found}
    assert len(models) == 16
    assert OF_FILES.keys() < models
    assert found == {
        (model, backend): SCHEMES for model in models for backend in OF_FILES.get(model, BACKENDS)
    }


def test_every_model_runs_on_one_dataset(cells):
    datasets = {}
    for cell in cells:
        datasets.setdefault(cell.model.label, set()).add(cell.dataset.label)
    assert all(len(labels) == 1 for labels in datasets.values())


@pytest.mark.frameworks
def test_every_name_in_it_is_a_callable_of_this_project(cells):
    for cell in cells:
        assert callable(plugins.find("model", cell.model.target))
        assert callable(plugins.find("dataset", cell.dataset.target))
        assert callable(plugins.find("metric", cell.measure.metric.target))
