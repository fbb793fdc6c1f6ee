"""Simulated quantization of Keras models, held against the reference arithmetic in NumPy."""

import functools

import numpy as np
import pytest

from qb_cluster.catalog.digits import digits
from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import UnsupportedError
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    symmetric_qparams,
)
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_tensorflow import TensorFlowBackend, keras_file
from qb_tensorflow.digits import digits_keras_cnn
from qb_tensorflow.framework import tensorflow
from qb_tensorflow.layers import named_layers

pytestmark = pytest.mark.frameworks

BACKEND = TensorFlowBackend()


def convert(model):
    return BACKEND.convert(lambda: model, {})


def simulate(artifact, scheme, bits, calibration=None, observer="minmax"):
    found_by = Calibration(observer=observer) if scheme.activations == "static" else None
    quantization = Quantization(scheme, Bits.parse(bits), "simulated", found_by)
    given = None if calibration is None else {"input": calibration}
    return BACKEND.quantize(None, artifact, quantization, given)


def run(artifact, inputs):
    return BACKEND.open(artifact, None, threads=1)({"input": inputs})["output"]


def examples(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def functional(*layers, shape):
    tensorflow()
    import keras

    value = inputs = keras.Input(shape)
    for layer in layers:
        value = layer(value)
    model = keras.Model(inputs, value)
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape).astype(np.float32))
    return model


@functools.cache
def cnn():
    return convert(digits_keras_cnn())


@functools.cache
def exact():
    return run(cnn(), digits()["inputs"])


def db(artifact):
    return deviation(exact(), run(artifact, digits()["inputs"])).sqnr_db


def test_each_bit_is_worth_about_six_decibels():
    found = [db(simulate(cnn(), Scheme("weight_only"), f"w{bits}")) for bits in range(3, 17)]
    gains = np.diff(found)
    assert gains.min() > 1
    assert np.mean(gains) == pytest.approx(6.02, abs=1)


@pytest.mark.parametrize(
    ("scheme", "bits", "least", "most"),
    [
        (Scheme("dynamic", "dynamic"), "w8a8", 35, 55),
        (Scheme("dynamic", "dynamic"), "w4a8", 15, 30),
        (Scheme("static", "static"), "w8a8", 30, 55),
        (Scheme("static", "static"), "w4a4", 10, 25),
        (Scheme("static", "static"), "w16a16", 40, 100),
        (Scheme("fp16", number="fp16"), "w16a16", 60, 90),
        (Scheme("bf16", number="bf16"), "w16a16", 40, 65),
        (Scheme("fp8", number="fp8_e4m3"), "w8", 25, 45),
        (Scheme("own", weight_quantizer=lambda w, _: np.float32(0.99) * w), "w8", 20, 50),
    ],
)
def test_every_kind_of_scheme_is_as_close_as_it_should_be(scheme, bits, least, most):
    artifact = simulate(cnn(), scheme, bits, digits()["calibration"]["inputs"])
    assert least < db(artifact) < most
    facts = artifact.facts
    assert facts.parameters == 38_282
    assert facts.quantized_parameters == 38_282 - 16 - 32 - 64 - 10  # biases stay
    assert facts.parameter_bytes is None
    assert facts.integer_mac_share == facts.integer_layer_mac_share == 0


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse", "entropy"])
def test_every_observer_finds_ranges(observer):
    calibration = digits()["calibration"]["inputs"]
    artifact = simulate(cnn(), Scheme("static", "static"), "w8a8", calibration, observer)
    assert 15 < db(artifact) < 55


def test_the_float_model_stays_as_it_was():
    before = run(cnn(), digits()["inputs"][:8])
    simulate(cnn(), Scheme("static", "static"), "w2a2", digits()["calibration"]["inputs"][:8])
    np.testing.assert_array_equal(run(cnn(), digits()["inputs"][:8]), before)


def layer_of(kind):
    """A layer, its input's shape, and how its kernel's axes become (out, in, …)."""
    tensorflow()
    from keras import layers

    return {
        "Dense": (layers.Dense(5), (6,), lambda w: w.T),
        "Conv1D": (layers.Conv1D(5, 3), (8, 4), lambda w: w.transpose(2, 1, 0)),
        "Conv2D": (layers.Conv2D(6, 3), (8, 8, 4), lambda w: w.transpose(3, 2, 0, 1)),
        "grouped Conv2D": (
            layers.Conv2D(6, 3, groups=2),
            (8, 8, 4),
            lambda w: w.transpose(3, 2, 0, 1),
        ),
        "Conv2DTranspose": (
            layers.Conv2DTranspose(6, 3),
            (8, 8, 4),
            lambda w: w.transpose(2, 3, 0, 1),
        ),
        "DepthwiseConv2D": (
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            (8, 8, 4),
            lambda w: w.reshape(3, 3, 8).transpose(2, 0, 1)[:, None],
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["Dense", "Conv1D", "Conv2D", "grouped Conv2D", "Conv2DTranspose", "DepthwiseConv2D"],
)
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("channel"),
        Scheme("group", granularity="per_group", group_size=4, symmetric=False),
        Scheme("mse", weight_range="mse", granularity="per_tensor"),
    ],
    ids=lambda scheme: scheme.name,
)
def test_kernels_are_rounded_along_their_output_channels(kind, scheme):
    layer, shape, to_reference = layer_of(kind)
    model = functional(layer, shape=shape)
    kernel = np.asarray(layer.kernel)
    artifact = simulate(convert(model), scheme, "w4")
    (rounded,) = named_layers(keras_file.load(artifact.data)).values()
    expected = quantize_dequantize_weights(to_reference(kernel), scheme, Bits(4))
    np.testing.assert_array_equal(to_reference(np.asarray(rounded.kernel)), expected)
    assert artifact.facts.quantized_parameters == kernel.size


def test_both_kernels_of_a_separable_convolution_are_rounded():
    tensorflow()
    from keras import layers

    layer = layers.SeparableConv2D(6, 3)
    artifact = simulate(convert(functional(layer, shape=(8, 8, 4))), Scheme("w"), "w2")
    (rounded,) = named_layers(keras_file.load(artifact.data)).values()
    for channel in np.moveaxis(np.asarray(rounded.pointwise_kernel), -1, 0):
        assert len(np.unique(channel)) <= 3
    for channel in np.moveaxis(np.asarray(rounded.depthwise_kernel).reshape(9, 4), -1, 0):
        assert len(np.unique(channel)) <= 3
    assert artifact.facts.quantized_parameters == 3 * 3 * 4 + 4 * 6
    assert "separable" in artifact.facts.notes[0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_inputs_of_layers_are_rounded_as_the_reference_rounds_them(symmetric, activations, bits):
    tensorflow()
    from keras import layers

    layer = layers.Dense(5)
    artifact = convert(functional(layer, shape=(6,)))
    inputs, calibration = examples(7, 6) ** 3, examples(50, 6)
    scheme = Scheme(
        activations,
        activations,
        symmetric_activations=symmetric,
        weight_quantizer=lambda weights, _: weights,  # inputs alone are rounded
    )
    outputs = run(simulate(artifact, scheme, f"w8a{bits}", calibration), inputs)
    qparams = symmetric_qparams if symmetric else affine_qparams
    rounded = np.empty_like(inputs)
    for row, example in enumerate(inputs):
        seen = calibration if activations == "static" else example
        scale, zero_point = qparams(float(seen.min()), float(seen.max()), bits)
        rounded[row] = quantize_dequantize_affine(example, scale, zero_point, bits)
    kernel, bias = (np.asarray(weight) for weight in layer.weights)
    np.testing.assert_allclose(outputs, rounded @ kernel + bias, rtol=1e-4, atol=1e-4)


def test_layers_have_bits_of_their_own_by_name():
    scheme = Scheme("static", "static", layers=(("head", "float"), ("conv*", "w2a8")))
    artifact = simulate(cnn(), scheme, "w4a8", digits()["calibration"]["inputs"][:64])
    before = named_layers(keras_file.load(cnn().data))
    after = named_layers(keras_file.load(artifact.data))
    assert list(after) == ["conv1", "conv2", "hidden", "head"]
    np.testing.assert_array_equal(after["head"].kernel, before["head"].kernel)
    assert len(np.unique(np.asarray(after["conv2"].kernel)[..., 0])) == 3
    assert 3 < len(np.unique(np.asarray(after["hidden"].kernel)[..., 0])) <= 15
    assert set(keras_file.activations(artifact.data)) == {"conv1", "conv2", "hidden"}
    assert artifact.facts.notes == ("1 of 4 weight tensors stay float",)
    everything_float = Scheme("weight_only", layers=(("*", "float"),))
    with pytest.raises(UnsupportedError, match="leaves all float"):
        simulate(cnn(), everything_float, "w4")


def test_layers_inside_models_and_wrappers_are_found_once():
    tensorflow()
    import keras
    from keras import layers

    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="shared")], name="inner")
    outer = keras.Input((5, 3))
    value = layers.TimeDistributed(inner, name="each")(outer)
    value = layers.TimeDistributed(layers.Dense(2, name="last"), name="wrapped")(value)
    artifact = convert(keras.Model(outer, value))
    assert list(named_layers(keras_file.load(artifact.data))) == [
        "each.inner.shared",
        "wrapped.last",
    ]
    scheme = Scheme("static", "static", layers=(("each.*", "w3a3"),))
    inputs = examples(4, 5, 3)
    rough = simulate(artifact, scheme, "w16a16", inputs)
    assert 0 < deviation(run(artifact, inputs), run(rough, inputs)).sqnr_db < 30


def test_what_is_no_dense_or_convolution_stays_float_and_is_told():
    tensorflow()
    from keras import layers

    model = functional(layers.LSTM(4), layers.Dense(2), shape=(5, 3))
    artifact = simulate(convert(model), Scheme("weight_only"), "w4")
    assert artifact.facts.notes == ("2 of 3 weight tensors stay float",)
    assert artifact.facts.quantized_parameters == 8
