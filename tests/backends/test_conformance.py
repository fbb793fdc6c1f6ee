"""What every backend promises, checked on every backend, with the same trained models."""

import dataclasses
import functools
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref, Scheme
from qb_cluster.errors import CellError, PlugInError, UnsupportedError
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.inference import run

pytestmark = pytest.mark.frameworks

TORCH_BACKENDS = ["pytorch", "tflite", "onnxruntime"]
TORCH_MODELS = ["digits-cnn", "digits-mlp"]
PAIRS = [
    *itertools.product(TORCH_BACKENDS, TORCH_MODELS),
    ("tensorflow", "digits-keras-cnn"),
    ("tensorflow", "digits-keras-mlp"),
]
SMALL = [(name, model) for name, model in PAIRS if "mlp" in model]
CONVOLUTIONAL = [(name, model) for name, model in PAIRS if "cnn" in model]
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
    asked = Calibration() if scheme == "static" else None
    for execution in ("native", "simulated"):
        quantization = Quantization(made, Bits.parse(bits), execution, asked)
        if backend(backend_name).support(quantization).supported:
            break
    calibration = None if asked is None else digits().calibration_sample(asked)
    artifact = backend(backend_name).quantize(
        lambda: model(model_name), baseline(backend_name, model_name), quantization, calibration
    )
    return artifact, backend(backend_name).open(artifact, lambda: model(model_name), 1)


@pytest.mark.parametrize("model_name", TORCH_MODELS)
def test_one_trained_model_gives_the_same_float_outputs_on_every_backend(model_name):
    for one, two in itertools.combinations(TORCH_BACKENDS, 2):
        difference = np.abs(float_outputs(one, model_name) - float_outputs(two, model_name))
        assert difference.max() < 1e-4, (one, two)


@pytest.mark.parametrize(("name", "model_name"), PAIRS)
def test_a_float_artifact_holds_32_bits_a_weight_and_no_integers(name, model_name):
    facts = baseline(name, model_name).facts
    if "keras" in model_name:
        expected = model(model_name).count_params()
    else:
        expected = sum(p.numel() for p in model(model_name).parameters())
    assert facts.parameters == expected
    assert facts.bits_per_weight == 32
    assert facts.quantized_parameters == 0
    assert facts.integer_mac_share == facts.integer_layer_mac_share == 0


@pytest.mark.parametrize(("scheme", "bits"), CASES)
@pytest.mark.parametrize(("name", "model_name"), PAIRS)
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
@pytest.mark.parametrize(("name", "model_name"), CONVOLUTIONAL)
def test_an_example_gives_the_same_alone_and_among_loud_neighbours(name, model_name, scheme, bits):
    _, executable = quantized(name, model_name, scheme, bits)
    example = digits().inputs["input"][:1]
    loud = np.concatenate([example, 100 * digits().inputs["input"][1:8]])
    alone = next(iter(executable({"input": example}).values()))[0]
    among = next(iter(executable({"input": loud}).values()))[0]
    # Sums may be rounded differently in a larger batch, which can move one activation a level.
    np.testing.assert_allclose(among, alone, atol=0.05 * np.abs(alone).max())


@pytest.mark.parametrize(("name", "model_name"), SMALL)
def test_the_same_model_quantized_twice_computes_the_same(name, model_name):
    one, first = quantized(name, model_name, "static", "w8a8")
    two, second = quantized(name, model_name, "static", "w8a8")
    assert one.facts == two.facts
    inputs = digits().inputs
    np.testing.assert_array_equal(run(first, inputs, 64), run(second, inputs, 64))


@pytest.mark.parametrize("name", [*TORCH_BACKENDS, "tensorflow"])
def test_something_that_is_no_model_is_refused_by_name(name):
    example = {"input": digits().inputs["input"][:1]}
    with pytest.raises(PlugInError, match="dict"):
        backend(name).convert(dict, example)


@pytest.mark.parametrize("ending", ["onnx", "tflite", "pt2", "keras"])
def test_a_file_that_is_no_model_is_an_error_of_its_cell(tmp_path, ending):
    takers = [n for n in (*TORCH_BACKENDS, "tensorflow") if ending in backend(n).takes]
    assert takers
    example = {"input": digits().inputs["input"][:1]}
    for content in (b"", b"garbage" * 100, b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00trueuR."):
        path = tmp_path / f"model.{ending}"
        path.write_bytes(content)
        for name in takers:
            with pytest.raises(CellError, match=f"model.{ending}"):
                backend(name).convert(lambda path=path: path, example)


WITH_LAYERS = {
    ("pytorch", "native"),
    ("pytorch", "simulated"),
    ("tflite", "native"),
    ("tflite", "simulated"),
    ("onnxruntime", "native"),
    ("onnxruntime", "simulated"),
    ("tensorflow", "simulated"),
}
"""Where a scheme may give layers bits of their own; elsewhere it is refused before."""


@pytest.mark.parametrize("execution", ["native", "simulated"])
@pytest.mark.parametrize(("activations", "bits"), [("none", "w8"), ("static", "w8a8")])
@pytest.mark.parametrize(("name", "model_name"), SMALL)
def test_a_pattern_that_matches_nothing_is_the_same_error_everywhere(
    name, model_name, activations, bits, execution
):
    scheme = Scheme("mine", activations, layers=(("haed*", bits),))
    asked = Calibration() if activations == "static" else None
    quantization = Quantization(scheme, Bits.parse(bits), execution, asked)
    told = backend(name).support(quantization)
    assert told.supported == ((name, execution) in WITH_LAYERS), told.reason
    if not told.supported:
        assert told.reason
        return
    calibration = None if asked is None else digits().calibration_sample(asked)
    text = (
        r"^scheme 'mine': the pattern 'haed\*' under layers matches none of the 3 layers that can "
        r"be quantized \(.+, .+, .+\); write their names, \* stands for any text$"
    )
    with pytest.raises(PlugInError, match=text):
        backend(name).quantize(
            lambda: model(model_name), baseline(name, model_name), quantization, calibration
        )


@pytest.mark.parametrize("execution", ["native", "simulated"])
@pytest.mark.parametrize("field", ["number", "activations", "granularity", "weight_range"])
@pytest.mark.parametrize("name", [*TORCH_BACKENDS, "tensorflow"])
def test_a_scheme_in_words_that_a_backend_does_not_know_is_refused(name, field, execution):
    for base in (Scheme("any"), Scheme("any", "dynamic"), Scheme("any", "static")):
        scheme = dataclasses.replace(base)
        object.__setattr__(scheme, field, "int3_block_magic")
        for bits in (Bits(8), Bits(8, 8)):
            told = backend(name).support(Quantization(scheme, bits, execution))
            assert not told.supported
            assert told.reason.startswith(f"{name} does not know {field} 'int3_block_magic'; it ")


class DependsOnValues(torch.nn.Module):
    """Runs, and no exporter can follow it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 4)

    def forward(self, input):  # noqa: A002 - the contract's name
        if bool(input.sum() > 0):
            return self.layer(input.flatten(1))
        return -self.layer(input.flatten(1))


@pytest.mark.parametrize("name", TORCH_BACKENDS)
def test_a_model_that_cannot_be_exported_is_unsupported_in_one_line_with_the_cause(name):
    static = Quantization(Scheme("static", "static"), Bits(8, 8), "native", Calibration())
    net = DependsOnValues().eval()
    inputs = {"input": digits().inputs["input"][:4]}

    def make():
        artifact = backend(name).convert(lambda: net, {"input": inputs["input"][:1]})
        return backend(name).quantize(lambda: net, artifact, static, inputs)

    with pytest.raises(UnsupportedError, match=r"\(?\w+: .*data-dependent") as raised:
        make()
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


OPEN_ELSEWHERE = """
import pickle, sys
from qb_cluster.catalog import plugins
from qb_cluster.contracts import Ref

backend_name, model_name, inputs, artifacts = pickle.load(sys.stdin.buffer)
backend = plugins.make("backend", Ref(backend_name, backend_name))
load = lambda: plugins.make("model", Ref(model_name, model_name))
outputs = [next(iter(backend.open(one, load, 1)({"input": inputs}).values())) for one in artifacts]
pickle.dump(outputs, open(sys.argv[1], "wb"))
"""


@pytest.mark.parametrize(("name", "model_name"), SMALL)
def test_an_artifact_runs_in_a_process_that_never_quantized_anything(tmp_path, name, model_name):
    # The static one first: what opening another one imports must not help it.
    cases = [("static", "w8a8"), ("dynamic", "w8a8"), ("weight_only", "w4")]
    made = [quantized(name, model_name, scheme, bits) for scheme, bits in cases]
    inputs = digits().inputs["input"][:16]
    asked = pickle.dumps((name, model_name, inputs, [artifact for artifact, _ in made]))
    command = [sys.executable, "-W", "ignore", "-c", OPEN_ELSEWHERE, str(tmp_path / "outputs")]
    done = subprocess.run(command, input=asked, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2_000:]
    elsewhere = pickle.loads((tmp_path / "outputs").read_bytes())
    for (_, here), there in zip(made, elsewhere, strict=True):
        expected = next(iter(here({"input": inputs}).values()))
        np.testing.assert_allclose(there, expected, atol=1e-5)
