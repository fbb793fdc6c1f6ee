"""Right kernels are not accused by reference arithmetic on their artifact, and wrong ones are."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref
from qb_cluster.errors import UnsupportedError
from qb_cluster.evaluation import inference
from qb_cluster.evaluation.own_arithmetic import departure
from qb_cluster.quantization import schemes
from qb_cluster.worker.facts_check import check_facts

pytestmark = pytest.mark.frameworks

BACKENDS = ("pytorch", "onnxruntime", "tflite")
STATIC, MOVING = schemes.static(), Calibration(observer="moving_average")
COUNT = 64


class Headed(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.net, self.head = plugins.make("model", Ref("m", "digits-cnn")), head

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(self.net(input))


HEADS = {
    "logits": nn.Identity(),
    "softmax": nn.Softmax(-1),
    "sigmoid": nn.Sigmoid(),
}


@functools.cache
def images():
    data = load_dataset(Ref("d", "digits"))
    first = {name: array[:COUNT] for name, array in data.inputs.items()}
    return first, data.calibration_sample(Calibration(samples=64))


@functools.cache
def float_artifact(name, head):
    backend = plugins.make("backend", Ref(name, name))
    model = Headed(HEADS[head]).eval()
    inputs, _ = images()
    base = backend.convert(lambda: model, {k: v[:1] for k, v in inputs.items()})
    return backend, model, base, outputs(backend.open(base, lambda: model, 1))


def outputs(executable):
    return inference.run(executable, images()[0], 16)


def found(name, head, scheme, bits, calibration=None):
    backend, model, base, floats = float_artifact(name, head)
    is_static = scheme.activations == "static"
    given = calibration or Calibration()
    asked = Quantization(scheme, Bits.parse(bits), "native", given if is_static else None)
    assert backend.support(asked).supported
    made = backend.quantize(lambda: model, base, asked, images()[1] if is_static else None)
    reference = outputs(backend.reference(made, lambda: model, 1))
    fast = outputs(backend.open(made, lambda: model, 1))
    slack_db = getattr(backend, "reference_slack_db", 0.0)
    return floats, reference, fast, slack_db


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bits", ["w8", "w4"])
def test_stored_weights_are_multiplied_as_they_are(name, bits):
    judged = departure(*found(name, "logits", schemes.weight_only(), bits))
    assert judged.fault == ""
    assert judged.worst_db < -40  # floats round alone


@pytest.mark.parametrize("name", ["onnxruntime", "tflite"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_ranges_found_while_running_are_right(name, bits):
    assert departure(*found(name, "logits", schemes.dynamic(), bits)).fault == ""


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("head", HEADS)
def test_heads_of_probabilities_are_right(name, head):
    assert departure(*found(name, head, STATIC, "w8a8")).fault == ""


@pytest.mark.parametrize("name", BACKENDS)
def test_ranges_of_a_moving_average_that_clip_are_right(name):
    assert departure(*found(name, "logits", STATIC, "w8a8", MOVING)).fault == ""


@pytest.mark.parametrize("name", ["onnxruntime", "tflite"])
@pytest.mark.parametrize(
    "scheme",
    [schemes.static(activations="all"), schemes.static(symmetric_activations=True)],
    ids=["all", "symmetric"],
)
def test_other_static_schemes_are_right(name, scheme):
    assert departure(*found(name, "logits", scheme, "w8a8")).fault == ""


def test_small_groups_of_weights_are_right():
    grouped = schemes.weight_only(granularity="per_group", group_size=32)
    assert departure(*found("onnxruntime", "logits", grouped, "w4")).fault == ""


@pytest.mark.parametrize("name", BACKENDS)
def test_exchanged_classes_and_a_lost_bias_are_seen_in_every_runtime(name):
    floats, reference, fast, slack_db = found(name, "logits", STATIC, "w8a8")
    exchanged = fast[:, [1, 0, *range(2, 10)]]
    assert departure(floats, reference, exchanged, slack_db).fault
    assert departure(floats, reference, fast - fast.mean(axis=0), slack_db).fault
    assert departure(floats, reference, floats * np.float32(1 + 1e-6), slack_db).fault


def test_torchaos_own_ranges_have_no_reference():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedError, match="stored weights"):
        found("pytorch", "logits", schemes.dynamic(), "w8a8")


class Twice(nn.Module):
    """One layer on two inputs of unlike ranges, so that its bias needs two scales."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(self.mix(input[:, 0]).relu() + self.mix(9 * input[:, 1]).relu())


@pytest.mark.parametrize("name", ["onnxruntime", "tflite"])
def test_a_bias_that_is_stored_twice_is_no_second_parameter(name):
    torch.manual_seed(0)
    model, backend = Twice().eval(), plugins.make("backend", Ref(name, name))
    inputs = {"input": np.random.default_rng(0).normal(size=(32, 2, 16)).astype(np.float32)}
    base = backend.convert(lambda: model, {"input": inputs["input"][:1]})
    asked = Quantization(STATIC, Bits(8, 8), "native", Calibration())
    made = backend.quantize(lambda: model, base, asked, inputs)
    check_facts(backend, made, base, simulated=False)
    assert 0 < made.facts.quantized_parameters <= made.facts.parameters
