"""Simulated PyTorch: every option of a scheme, every observer, any bits for any layer."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    symmetric_qparams,
)
from qb_cluster.quantization.observers import make_observer
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_pytorch import PyTorchBackend
from qb_pytorch.fake_quantization import fake_quantize_each, fake_quantizer

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()
WEIGHTS = [
    {"granularity": "per_tensor"},
    {"granularity": "per_group", "group_size": 5},
    {"symmetric": False},
    {"narrow_range": False},
    {"weight_range": "mse"},
    {"weight_range": "signed_max", "narrow_range": False},
    {"number": "fp16"},
    {"number": "bf16"},
    {"number": "fp8_e4m3"},
    {"number": "fp8_e5m2"},
]
OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {"input": rng.normal(size=(90, 2, 6, 6)).astype(np.float32)}


def quantize(net, inputs, scheme, bits, calibration=None):
    asked = Quantization(scheme, bits, "simulated", calibration)
    baseline = BACKEND.convert(lambda: net, {"input": inputs["input"][:1]})
    static = scheme.activations == "static"
    return BACKEND.quantize(lambda: net, baseline, asked, inputs if static else None)


def content(artifact):
    return torch.load(io.BytesIO(artifact.data), weights_only=True)


@pytest.mark.parametrize("options", WEIGHTS, ids=str)
def test_weights_are_those_of_the_reference_arithmetic(net, inputs, options):
    scheme = Scheme("mine", **options)
    bits = scheme.fixed_bits or Bits(5)
    artifact = quantize(net, inputs, scheme, bits)
    for name, weight in net.named_parameters():
        exact = weight.detach().numpy()
        rounds = weight.ndim >= 2
        expected = quantize_dequantize_weights(exact, scheme, bits) if rounds else exact
        np.testing.assert_array_equal(content(artifact)["state"][name].numpy(), expected)
    assert artifact.facts.integer_mac_share == 0


@pytest.mark.parametrize("number", ["fp16", "bf16"])
def test_sixteen_bit_formats_round_the_inputs_of_layers_too(net, inputs, number):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[number]
    artifact = quantize(net, inputs, Scheme(number, number=number), Bits(16, 16))
    found = BACKEND.open(artifact, lambda: net, 1)(inputs)["output"]
    values = torch.from_numpy(inputs["input"])
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                values = values.to(dtype).float()
                weight = layer.weight.to(dtype).float()
                values = torch.func.functional_call(layer, {"weight": weight}, (values,))
            else:
                values = layer(values)
    np.testing.assert_array_equal(found, values.numpy())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_static_ranges_are_those_of_the_observer_that_is_named(net, inputs, observer, symmetric):
    calibration = Calibration(observer=observer, percentile=97)
    scheme = Scheme("static", "static", symmetric_activations=symmetric)
    artifact = quantize(net, inputs, scheme, Bits(8, 6), calibration)
    watching = make_observer(calibration, 6, symmetric=symmetric)
    for start in range(0, 90, 64):
        watching.update(inputs["input"][start : start + 64])
    scale, zero_point = (symmetric_qparams if symmetric else affine_qparams)(*watching.range(), 6)
    assert content(artifact)["inputs"]["0"] == {
        "kind": "static",
        "scale": scale,
        "zero_point": zero_point,
        "bits": 6,
    }


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_layers_take_bits_of_their_own_or_stay_float(net, inputs, activations):
    layers = (("5", "float"), ("3", "w2a12"))
    scheme = Scheme(activations, activations, layers=layers)
    artifact = quantize(net, inputs, scheme, Bits(8, 8))
    stored = content(artifact)
    assert {name: own["bits"] for name, own in stored["inputs"].items()} == {"0": 8, "3": 12}
    assert torch.equal(stored["state"]["5.weight"], net[5].weight)
    assert max(len(row.unique()) for row in stored["state"]["3.weight"]) == 3
    assert artifact.facts.fallback_ops == ()
    assert artifact.facts.notes == ("1 of 3 weight tensors stay float (Linear)",)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=True), min_size=1, max_size=20),
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
)
def test_activations_are_rounded_as_the_reference_does_to_the_bit(values, bits, symmetric):
    array = np.array([values], np.float32)
    qparams = symmetric_qparams if symmetric else affine_qparams
    scale, zero_point = qparams(float(array.min()), float(array.max()), bits)
    expected = quantize_dequantize_affine(array, scale, zero_point, bits)
    static = fake_quantizer("static", scale=scale, zero_point=zero_point, bits=bits)
    tensor = torch.from_numpy(array)
    np.testing.assert_array_equal(static(tensor).numpy(), expected)
    dynamic = fake_quantize_each(tensor, bits, symmetric=symmetric)
    np.testing.assert_array_equal(dynamic.numpy(), expected)
    assert torch.equal(tensor, torch.from_numpy(np.array([values], np.float32)))


def test_entropy_loses_to_minmax_where_a_tensor_has_few_values():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(432, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    ).eval()
    images = np.random.default_rng(0).normal(0.3, 1, (2128, 3, 8, 8)).astype(np.float32)
    held_out = {"input": images[2000:]}
    with torch.no_grad():
        exact = net(torch.from_numpy(held_out["input"])).numpy()
    lost = []
    for samples in (40, 2000):
        found = {}
        for observer in ("minmax", "entropy"):
            calibration = Calibration(samples, observer=observer)
            scheme = Scheme("static", "static")
            inputs = {"input": images[:samples]}
            artifact = quantize(net, inputs, scheme, Bits(8, 8), calibration)
            (got,) = BACKEND.open(artifact, lambda: net, 1)(held_out).values()
            found[observer] = -10 * np.log10(np.sum((exact - got) ** 2))
        lost.append(found["minmax"] - found["entropy"])
    assert lost[0] > 5
    assert lost[1] < 1.5
