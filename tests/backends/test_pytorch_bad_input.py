"""Weights and calibration sets that break careless quantizers, and files that would run code."""

import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Artifact, ArtifactFacts, Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import CellError, DataError, NonFiniteError
from qb_pytorch import PyTorchBackend

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()
CELLS = [
    (Scheme("weight_only"), "w4", "simulated"),
    (Scheme("weight_only", symmetric=False, weight_range="mse"), "w3", "simulated"),
    (Scheme("dynamic", "dynamic"), "w8a8", "simulated"),
    (Scheme("static", "static"), "w8a8", "simulated"),
    (Scheme("weight_only"), "w8", "native"),
    (Scheme("weight_only"), "w4", "native"),
    (Scheme("dynamic", "dynamic"), "w8a8", "native"),
    (Scheme("static", "static"), "w8a8", "native"),
    (Scheme("fp8", number="fp8_e4m3"), "w8", "native"),
]
WEIGHTS = {
    "constant": 0.5,
    "zero": 0.0,
    "denormal": 1e-40,
    "huge": 1e30,
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 16)
    ).eval()


def inputs(count=8):
    return {"input": np.random.default_rng(0).normal(size=(count, 1, 6, 6)).astype(np.float32)}


def outputs(model, scheme, bits, execution, calibration=None):
    static = scheme.activations == "static"
    baseline = BACKEND.convert(lambda: model, {"input": inputs()["input"][:1]})
    artifact = BACKEND.quantize(
        lambda: model,
        baseline,
        Quantization(scheme, Bits.parse(bits), execution, Calibration() if static else None),
        (calibration or inputs()) if static else None,
    )
    return BACKEND.open(artifact, lambda: model, 1)(inputs())["output"]


def name_of(cell):
    scheme, bits, execution = cell
    return f"{scheme.name}-{bits}-{execution}"


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_odd_weights_give_finite_outputs_of_one_channel_layers_too(cell, kind):
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(WEIGHTS[kind])
    assert model[0].out_channels == 1
    assert np.isfinite(outputs(model, *cell)).all()


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(cell, value):
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"NaN or infin"):
        outputs(model, *cell)


@pytest.mark.parametrize("execution", ["native", "simulated"])
def test_an_outlier_in_calibration_costs_accuracy_and_nothing_else(execution):
    model = net()
    calibration = inputs()
    calibration["input"][0, 0, 0, 0] = 1e6
    scheme = Scheme("static", "static")
    with_outlier = outputs(model, scheme, "w8a8", execution, calibration)
    assert np.isfinite(with_outlier).all()
    exact = model(torch.from_numpy(inputs()["input"])).detach().numpy()
    spoilt = np.abs(with_outlier - exact).max()
    assert spoilt > 10 * np.abs(outputs(model, scheme, "w8a8", execution) - exact).max()


@pytest.mark.parametrize("execution", ["native", "simulated"])
def test_a_calibration_example_that_is_no_number_is_named(execution):
    calibration = inputs()
    calibration["input"][0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="calibration met"):
        outputs(net(), Scheme("static", "static"), "w8a8", execution, calibration)


def test_an_empty_calibration_set_is_refused():
    with pytest.raises(DataError, match="no value"):
        outputs(net(), Scheme("static", "static"), "w8a8", "simulated", inputs(0))


class Trap:
    """Unpickling it would set a flag."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_a_pickle_posing_as_weights_is_refused_and_never_run():
    pickles = [pickle.dumps(Trap())]
    for content in (Trap(), {"state": Trap(), "activations": {}}):
        file = io.BytesIO()
        torch.save(content, file)
        pickles.append(file.getvalue())
    for data in pickles:
        artifact = Artifact(data, "pt", ArtifactFacts(0, None, 0))
        with pytest.raises(CellError, match="nothing in it was run"):
            BACKEND.open(artifact, net, 1)
    assert not Trap.sprung
    torch.load(io.BytesIO(pickles[1]), weights_only=False)
    assert Trap.sprung  # it would have


@pytest.mark.parametrize("cut", [0, 100, -200])
def test_a_truncated_artifact_is_a_typed_error(cut):
    data = BACKEND.convert(net, {"input": inputs()["input"][:1]}).data
    with pytest.raises(CellError, match="damaged"):
        BACKEND.open(Artifact(data[:cut], "pt", ArtifactFacts(0, None, 0)), net, 1)


def test_the_state_of_another_model_is_a_typed_error():
    artifact = BACKEND.convert(net, {"input": inputs()["input"][:1]})
    with pytest.raises(CellError, match="does not fit the model"):
        BACKEND.open(artifact, lambda: nn.Sequential(nn.Linear(3, 3)), 1)
