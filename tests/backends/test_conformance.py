"""What every backend promises, checked on every backend, with the same trained models."""

import functools
import itertools

import numpy as np
import pytest

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref
from qb_cluster.errors import PlugInError
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.inference import run

pytestmark = pytest.mark.frameworks

BACKENDS = ["pytorch", "tflite", "onnxruntime"]
MODELS = ["digits-cnn", "digits-mlp"]
CASES = [
    ("weight_only", "w8"),
    ("weight_only", "w4"),
    ("dynamic", "w8a8"),
    ("dynamic", "w4a8"),
    ("static", "w8a8"),
    ("static", "w4a8"),
]
# Half a step of noise in weights (and activations) of this many bits leaves at least this much.
LEAST_SQNR_DB = {"w8": 35, "w4": 15, "w8a8": 28, "w4a8": 15}


@functools.cache
def backend(name):
    return plugins.make("backend", Ref(name, name))


@functools.cache
def model(name):
    return plugins.make("model", Ref(name, name))


@functools.cache
def digits():
    return load_dataset(Ref("digits", "digits"))


@functools.cache
def baseline(backend_name, model_name):
    example = {"input": digits().inputs["input"][:1]}
    return backend(backend_name).convert(lambda: model(model_name), example)


@functools.cache
def float_outputs(backend_name, model_name):
    artifact = baseline(backend_name, model_name)
    executable = backend(backend_name).open(artifact, lambda: model(model_name), 1)
    return run(executable, digits().inputs, 64)


def quantized(backend_name, model_name, scheme, bits):
    """The quantized artifact by whichever execution the backend supports, and its executable."""
    made = plugins.make("scheme", Ref(scheme, scheme))
    for execution in ("native", "simulated"):
        quantization = Quantization(made, Bits.parse(bits), execution)
        if backend(backend_name).support(quantization).supported:
            break
    calibration = digits().calibration_sample(Calibration()) if scheme == "static" else None
    artifact = backend(backend_name).quantize(
        lambda: model(model_name), baseline(backend_name, model_name), quantization, calibration
    )
    return artifact, backend(backend_name).open(artifact, lambda: model(model_name), 1)


@pytest.mark.parametrize("model_name", MODELS)
def test_one_trained_model_gives_the_same_float_outputs_on_every_backend(model_name):
    for one, two in itertools.combinations(BACKENDS, 2):
        difference = np.abs(float_outputs(one, model_name) - float_outputs(two, model_name))
        assert difference.max() < 1e-4, (one, two)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_float_artifact_holds_32_bits_a_weight_and_no_integers(name, model_name):
    facts = baseline(name, model_name).facts
    expected = sum(p.numel() for p in model(model_name).parameters())
    assert facts.parameters == expected
    assert facts.bits_per_weight == 32
    assert facts.quantized_parameters == 0


@pytest.mark.parametrize(("scheme", "bits"), CASES)
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_supported_is_really_quantized_and_still_the_same_model(
    name, model_name, scheme, bits
):
    artifact, executable = quantized(name, model_name, scheme, bits)
    assert artifact.facts.quantized_parameters > 0
    if artifact.facts.bits_per_weight is not None:
        assert artifact.facts.bits_per_weight < 13
        assert len(artifact.data) < len(baseline(name, model_name).data)
    outputs = run(executable, digits().inputs, 64)
    distance = deviation(float_outputs(name, model_name), outputs)
    assert LEAST_SQNR_DB[bits] < distance.sqnr_db < 60
    assert distance.top1_agreement > 0.95


@pytest.mark.parametrize(("scheme", "bits"), [("weight_only", "w8"), ("dynamic", "w8a8")])
@pytest.mark.parametrize("name", BACKENDS)
def test_an_example_gives_the_same_alone_and_among_loud_neighbours(name, scheme, bits):
    _, executable = quantized(name, "digits-cnn", scheme, bits)
    example = digits().inputs["input"][:1]
    loud = np.concatenate([example, 100 * digits().inputs["input"][1:8]])
    alone = next(iter(executable({"input": example}).values()))[0]
    among = next(iter(executable({"input": loud}).values()))[0]
    # Sums may be rounded differently in a larger batch, which can move one activation a level.
    np.testing.assert_allclose(among, alone, atol=0.05 * np.abs(alone).max())


@pytest.mark.parametrize("name", BACKENDS)
def test_the_same_model_quantized_twice_is_the_same_artifact(name):
    one, _ = quantized(name, "digits-mlp", "static", "w8a8")
    two, _ = quantized(name, "digits-mlp", "static", "w8a8")
    assert one.facts == two.facts
    outputs = [
        run(quantized(name, "digits-mlp", "static", "w8a8")[1], digits().inputs, 64)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("name", BACKENDS)
def test_something_that_is_no_torch_module_is_refused_by_name(name):
    example = {"input": digits().inputs["input"][:1]}
    with pytest.raises(PlugInError, match="dict"):
        backend(name).convert(dict, example)
