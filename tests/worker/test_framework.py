"""Float baselines, held against the model in its own framework, with real converters."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Cell, Device, Measure, Ref, Task
from qb_cluster.nodes.cores import available_cores
from qb_cluster.worker import Worker
from qb_cluster.worker.artifact_cache import ArtifactCache

pytestmark = pytest.mark.frameworks

CORES = available_cores()[:1]


class Dropping(nn.Linear):
    def forward(self, input):  # noqa: A002 - torch's name
        return nn.functional.dropout(super().forward(input), 0.3)  # also in evaluation


def net(kind="plain"):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), (Dropping if kind == "dropping" else nn.Linear)(32, 4)
    )
    with torch.no_grad():
        model[0].bias.add_(1.0)
        if kind == "zero head":
            model[2].weight.zero_()
            model[2].bias.fill_(0.5)
    return model.eval()


def points():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.standard_normal((40, 12)).astype(np.float32),
        "targets": rng.integers(0, 4, 40),
        "calibration": rng.standard_normal((20, 12)).astype(np.float32),
    }


def cell(backend, kind="plain", scheme=None):
    return Cell(
        cell_id="quantized" if scheme else "baseline",
        sweep="s",
        model=Ref("m", "tests.worker.test_framework:net", f'{{"kind":"{kind}"}}'),
        dataset=Ref("d", "tests.worker.test_framework:points"),
        backend=Ref(backend, backend),
        device=Device(),
        scheme=scheme and Ref(scheme, scheme),
        bits=scheme and Bits(8, 8 if scheme == "static" else None),
        execution=scheme and "native",
        reason="",
        calibration=Calibration() if scheme == "static" else None,
        measure=Measure(latency=None),
        timeout_s=60,
        baseline_cell_id="baseline",
        simulator=scheme and Ref("pytorch", "pytorch"),
    )


@pytest.fixture
def run(tmp_path):
    worker = Worker(tmp_path / "artifacts", ArtifactCache(tmp_path / "cache", limit_bytes=0))

    def run(*of, scheme=None):
        baseline = worker.run(Task(cell(*of), "quality", 1, CORES))
        if scheme is None or baseline.quality is None:
            return baseline
        return worker.run(Task(cell(*of, scheme), "quality", 1, CORES, baseline.quality))

    return run


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite"])
def test_a_right_conversion_has_the_decibels_of_float_rounding(run, backend):
    outcome = run(backend)
    assert outcome.status == "ok", outcome.error
    assert outcome.values["baseline_sqnr_db"] > 100


def test_the_framework_itself_is_held_against_nothing(run):
    outcome = run("pytorch")
    assert outcome.status == "ok"
    assert outcome.values.get("baseline_sqnr_db") is None
    assert "its own framework" not in str(outcome.values["notes"])


def without_biases(convert):
    def converted(self, model, example):
        made = convert(self, model, example)
        graph = onnx.load_from_string(made.data)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("bias"):
                zeros = np.zeros_like(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
        return type(made)(graph.SerializeToString(), made.format, made.facts)

    return converted


def flushed(convert):
    def converted(self, model, example):
        made = convert(self, model, example)
        graph = onnx.load_from_string(made.data)
        last = graph.graph.node[-1]
        name, last.output[0] = last.output[0], "before"
        zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
        graph.graph.initializer.append(zero)
        graph.graph.node.append(onnx.helper.make_node("Mul", ["before", "zero"], [name]))
        return type(made)(graph.SerializeToString(), made.format, made.facts)

    return converted


@pytest.mark.parametrize("fault", [without_biases, flushed])
def test_a_conversion_that_lost_the_model_is_a_baseline_mismatch(run, monkeypatch, fault):
    from qb_onnxruntime.backend import OnnxRuntimeBackend

    monkeypatch.setattr(OnnxRuntimeBackend, "convert", fault(OnnxRuntimeBackend.convert))
    outcome = run("onnxruntime")
    assert outcome.status == "baseline_mismatch"
    assert "for 8 of 8 examples" in outcome.error
    assert "value" not in outcome.values


@pytest.mark.parametrize("scheme", ["weight_only", "static"])
def test_a_model_that_drops_at_random_is_told_so_in_all_its_rows(run, scheme):
    for outcome in (run("pytorch", "dropping"), run("pytorch", "dropping", scheme=scheme)):
        assert "answers differently each time" in outcome.values["baseline_doubt"]


def test_a_model_that_gives_the_same_for_every_example_is_told_so_and_is_measured(run):
    outcome = run("onnxruntime", "zero head", scheme="weight_only")
    assert outcome.status == "ok", outcome.error
    assert "the same outputs for every example" in outcome.values["baseline_doubt"]
