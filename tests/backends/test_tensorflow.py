"""The tensorflow backend: what it converts, quantizes and runs, with the real tools."""

import functools
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from qb_cluster.catalog.digits import digits
from qb_cluster.contracts import Artifact, Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import DataError, NonFiniteError, PlugInError, UnsupportedError
from qb_cluster.evaluation.deviation import deviation
from qb_litert.quiet import quiet
from qb_litert.runtime import TFLiteExecutable
from qb_onnxruntime.runtime import int8_products_saturate
from qb_tensorflow import TensorFlowBackend
from qb_tensorflow.digits import digits_keras_cnn, digits_keras_mlp
from qb_tensorflow.framework import tensorflow

pytestmark = pytest.mark.frameworks

BACKEND = TensorFlowBackend()
NETS = {"cnn": digits_keras_cnn, "mlp": digits_keras_mlp}
PARAMETERS = {"cnn": 38_282, "mlp": 17_226}
FP16 = Scheme("fp16", number="fp16")
SCHEMES = {"none": "weight_only", "dynamic": "dynamic", "static": "static"}
GRANULARITIES = ("per_channel", "per_tensor")


def ask(activations, bits, execution="native", observer="minmax", **options):
    calibration = Calibration(observer=observer) if activations == "static" else None
    scheme = Scheme(SCHEMES[activations], activations, **options)
    return Quantization(scheme, Bits.parse(bits), execution, calibration)


def never_loaded():
    raise AssertionError("the model was loaded, though the artifact is enough")


@functools.cache
def net(name):
    return NETS[name]()


@functools.cache
def baseline(name):
    return convert(net(name))


@functools.cache
def float_outputs(name):
    return run(baseline(name), digits()["inputs"])


@functools.cache
def calibration_examples():
    return digits()["calibration"]["inputs"][:128]


@functools.cache
def quantized(name, quantization):
    return quantize(baseline(name), quantization, calibration_examples())


def convert(model):
    return BACKEND.convert(lambda: model, {"input": np.zeros((1, 1), np.float32)})


def quantize(artifact, quantization, examples=None):
    calibration = {"input": examples} if quantization.scheme.activations == "static" else None
    return BACKEND.quantize(never_loaded, artifact, quantization, calibration)


def run(artifact, inputs):
    return BACKEND.open(artifact, never_loaded, threads=1)({"input": inputs})["output"]


def small_net(*layers, shape=(8,)):
    """An untrained functional model of these layers and a dense head, always the same."""
    tensorflow()
    import keras

    inputs = keras.Input(shape, name="image")
    value = inputs
    for layer in layers:
        value = layer(value)
    if len(value.shape) > 2:
        value = keras.layers.Flatten()(value)
    model = keras.Model(inputs, keras.layers.Dense(10, name="head")(value))
    random = np.random.default_rng(0)
    for weight in model.weights:
        spread = 1 / np.sqrt(np.prod(weight.shape[:-1])) if len(weight.shape) > 1 else 0.1
        weight.assign(random.normal(0, spread, weight.shape).astype(np.float32))
    return model


def examples(shape, count=16):
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


def exported(model, folder):
    with quiet():
        model.export(folder, verbose=False)
    return str(folder)


# The float baseline


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["object", "keras file", "saved model"])
def test_the_float_artifact_says_what_keras_says(name, kind, tmp_path):
    model = net(name)
    given = model
    if kind == "keras file":
        given = str(tmp_path / "net.keras")
        with quiet():
            model.save(given)
    elif kind == "saved model":
        given = exported(model, tmp_path / "saved")
    artifact = convert(given)
    outputs = run(artifact, digits()["inputs"])
    assert outputs.dtype == np.float32
    direct = model(digits()["inputs"], training=False).numpy()
    np.testing.assert_allclose(outputs, direct, rtol=0, atol=1e-5)
    assert artifact.facts.parameters == PARAMETERS[name]
    assert artifact.facts.bits_per_weight == 32
    assert artifact.facts.quantized_parameters == 0


@pytest.mark.parametrize(("name", "least"), [("cnn", 0.97), ("mlp", 0.95)])
def test_the_digits_models_read_digits(name, least):
    assert np.mean(float_outputs(name).argmax(axis=1) == digits()["targets"]) >= least


def test_the_same_model_gives_the_same_bytes_without_its_optimizer():
    model = small_net()
    plain = convert(model).data
    model.compile("adam", "mse")
    model.train_on_batch(examples((8,)), np.zeros((16, 10), np.float32))
    before = model.get_weights()
    first, second = convert(model).data, convert(model).data
    assert first == second
    assert len(first) == len(plain)
    assert model.optimizer is not None
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_of_batch_one_runs_any_number_of_examples():
    tensorflow()
    import keras

    inputs = keras.Input(batch_shape=(1, 8))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    outputs = run(convert(model), examples((8,), count=5))
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(outputs, examples((8,), count=5) @ kernel + bias, atol=1e-5)


def test_a_fixed_batch_of_another_size_is_refused():
    tensorflow()
    import keras

    inputs = keras.Input(batch_shape=(4, 8))
    artifact = convert(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    with pytest.raises(UnsupportedError, match="fixed batch of 4"):
        BACKEND.open(artifact, never_loaded, threads=1)


# Native


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("activations", "bits", "least_db"),
    [("dynamic", "w8a8", 40), ("static", "w8a8", 30), ("static", "w8a16", 35)],
)
def test_outputs_are_as_close_as_the_width_allows(name, granularity, activations, bits, least_db):
    artifact = quantized(name, ask(activations, bits, granularity=granularity))
    outputs = run(artifact, digits()["inputs"])
    assert least_db < deviation(float_outputs(name), outputs).sqnr_db < 60
    assert np.mean(outputs.argmax(axis=1) == digits()["targets"]) > 0.96


@pytest.mark.parametrize("name", NETS)
def test_fp16_holds_16_bits_a_weight(name):
    artifact = quantized(name, Quantization(FP16, Bits(16, 16), "native"))
    assert artifact.facts.bits_per_weight == 16
    assert artifact.facts.quantized_parameters == PARAMETERS[name]
    distance = deviation(float_outputs(name), run(artifact, digits()["inputs"]))
    assert 60 < distance.sqnr_db < 90


def grid():
    """Ask for everything that a sweep might."""
    widths = [Bits(w, a) for w, a in itertools.product((2, 3, 4, 8, 16), (None, 4, 8, 16))]
    for bits, activations, granularity in itertools.product(widths, SCHEMES, GRANULARITIES):
        if (bits.activation is None) == (activations == "none"):
            yield ask(activations, str(bits), granularity=granularity)
    for number in ("fp16", "bf16", "fp8_e4m3", "fp8_e5m2"):
        scheme = Scheme(number, number=number)
        yield Quantization(scheme, scheme.fixed_bits, "native")


@pytest.mark.parametrize("name", NETS)
def test_whatever_is_called_native_runs_and_is_really_quantized(name):
    run_natively = 0
    for quantization in grid():
        support = BACKEND.support(quantization)
        if not support.supported:
            assert support.reason
            continue
        artifact = quantized(name, quantization)
        assert artifact.facts.quantized_parameters > 0.95 * PARAMETERS[name]
        assert artifact.facts.bits_per_weight <= 16
        assert len(artifact.data) < 0.6 * len(baseline(name).data)
        assert np.isfinite(run(artifact, digits()["inputs"][:8])).all()
        run_natively += 1
    assert run_natively == 7


def test_static_runs_all_its_arithmetic_in_integers_and_dynamic_leaves_small_tensors_float():
    static = quantized("cnn", ask("static", "w8a8")).facts
    assert (static.integer_mac_share, static.fallback_ops) == (1, ())
    assert static.integer_layer_mac_share == 1
    assert static.quantized_parameters == PARAMETERS["cnn"]
    dynamic = quantized("cnn", ask("dynamic", "w8a8")).facts
    assert 0.9 < dynamic.integer_mac_share < 1
    assert dynamic.integer_layer_mac_share == dynamic.integer_mac_share  # no attention
    assert baseline("cnn").facts.integer_layer_mac_share == 0
    assert dynamic.notes[0] == "2 of 4 weight tensors stay float"  # of 144 and 640 elements
    assert "fewer than 1,024" in BACKEND.support(ask("dynamic", "w8a8")).reason


def test_every_native_artifact_says_that_its_latency_compares_two_runtimes():
    for quantization in (ask("static", "w8a8"), Quantization(FP16, Bits(16, 16), "native")):
        (note,) = quantized("mlp", quantization).facts.notes
        assert "float runs in TensorFlow, this in LiteRT" in note


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_granularity_decides_how_many_scales_a_weight_has(activations):
    from ai_edge_litert.interpreter import Interpreter

    def most_scales(granularity):
        data = quantized("mlp", ask(activations, "w8a8", granularity=granularity)).data
        tensors = Interpreter(model_content=data).get_tensor_details()
        return max(len(tensor["quantization_parameters"]["scales"]) for tensor in tensors)

    assert most_scales("per_channel") == 128  # units of the first layer
    assert most_scales("per_tensor") == 1


@pytest.mark.parametrize(("bits", "levels"), [("w8a8", 255), ("w8a16", 2 * 32767)])
def test_static_ranges_are_the_true_minimum_and_maximum_of_all_calibration_examples(bits, levels):
    from ai_edge_litert.interpreter import Interpreter

    seen = run(baseline("mlp"), calibration_examples())
    data = quantized("mlp", ask("static", bits)).data
    tensors = Interpreter(model_content=data).get_tensor_details()
    integers = [t for t in tensors if tuple(t["shape"]) == (1, 10) and t["quantization"][0]]
    (logits,) = {t["quantization"] for t in integers}
    span = seen.max() - seen.min() if bits == "w8a8" else 2 * np.abs(seen).max()
    assert logits[0] * levels == pytest.approx(span, rel=1e-3)


@pytest.mark.parametrize("bits", ["w8a8", "w8a16"])
def test_saved_models_are_quantized_as_keras_models_are(bits, tmp_path):
    saved = convert(exported(net("mlp"), tmp_path / "saved"))
    artifact = quantize(saved, ask("static", bits), calibration_examples())
    assert artifact.facts == quantized("mlp", ask("static", bits)).facts
    np.testing.assert_array_equal(
        run(artifact, digits()["inputs"]),
        run(quantized("mlp", ask("static", bits)), digits()["inputs"]),
    )


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        (ask("none", "w8"), "no weight-only mode"),
        (ask("dynamic", "w4a8"), "no w4a8 with dynamic activations (available: w8a8)"),
        (ask("static", "w8a4"), "available: w8a8, w8a16"),
        (ask("static", "w8a8", observer="entropy"), "minmax only, not by entropy"),
        (ask("static", "w8a8", granularity="per_group", group_size=32), "not per_group"),
        (ask("static", "w8a8", symmetric=False), "symmetric"),
        (ask("static", "w8a8", narrow_range=False), "narrow range"),
        (ask("static", "w8a8", weight_range="mse"), "scaled to their largest"),
        (ask("static", "w8a8", symmetric_activations=True), "affine"),
        (ask("static", "w8a8", layers=(("head", "float"),)), "all layers alike"),
        (ask("static", "w8a8", weight_quantizer=lambda w, _: w), "its own weight arithmetic"),
        (Quantization(Scheme("b", number="bf16"), Bits(16, 16), "native"), "leaves the model flo"),
        (Quantization(Scheme("f", number="fp8_e4m3"), Bits(8), "native"), "no fp8_e4m3"),
    ],
)
def test_what_has_no_kernels_is_refused_and_simulated(quantization, reason):
    support = BACKEND.support(quantization)
    assert not support.supported
    assert reason in support.reason
    simulated = Quantization(
        quantization.scheme, quantization.bits, "simulated", quantization.calibration
    )
    assert BACKEND.support(simulated).supported


def test_bfloat16_is_refused_because_the_converter_leaves_the_model_float():
    tf = tensorflow()
    with quiet():
        converter = tf.lite.TFLiteConverter.from_keras_model(net("mlp"))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.bfloat16]
        data = converter.convert()
    outputs = TFLiteExecutable(data, threads=1)({"input": digits()["inputs"]})["output"]
    assert deviation(float_outputs("mlp"), outputs).sqnr_db > 100


# Traps


def test_dynamic_depthwise_convolutions_with_one_scale_return_garbage_and_are_refused():
    tf = tensorflow()
    import keras

    shape = (8, 8, 128)
    model = small_net(keras.layers.DepthwiseConv2D(3), shape=shape)
    artifact = convert(model)
    inputs = examples(shape)
    exact = run(artifact, inputs)
    right = run(quantize(artifact, ask("dynamic", "w8a8")), inputs)
    assert deviation(exact, right).sqnr_db > 30
    with pytest.raises(UnsupportedError, match="garbage when a tensor has one scale"):
        quantize(artifact, ask("dynamic", "w8a8", granularity="per_tensor"))
    with quiet():  # what would have been returned
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter._experimental_disable_per_channel = True
        garbage = TFLiteExecutable(converter.convert(), threads=1)({"input": inputs})["output"]
    assert not deviation(exact, np.nan_to_num(garbage / 1e6)).sqnr_db > 0


@pytest.mark.parametrize("kind", ["plain", "strided", "depthwise", "dilated", "transposed"])
@pytest.mark.parametrize("one_channel", [True, False])
def test_channels_first_convolutions_convert_rightly_or_are_refused(kind, one_channel):
    tensorflow()
    from keras import layers

    first = {"data_format": "channels_first"}
    layer = {
        "plain": lambda: layers.Conv2D(16, 3, padding="same", **first),
        "strided": lambda: layers.Conv2D(16, 3, strides=2, padding="same", **first),
        "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", **first),
        "dilated": lambda: layers.Conv2D(16, 3, dilation_rate=2, **first),
        "transposed": lambda: layers.Conv2DTranspose(16, 3, **first),
    }[kind]()
    shape = (1 if one_channel else 12, 8, 8)
    artifact = convert(small_net(layer, layers.MaxPooling2D(2, **first), shape=shape))
    inputs = examples(shape)
    # TensorFlow itself takes oneDNN's kernels, which alone can do it, on CPUs with VNNI only.
    if int8_products_saturate() and kind != "depthwise":
        with pytest.raises(UnsupportedError, match="TF_ENABLE_ONEDNN_OPTS=1"):
            run(artifact, inputs)
        return
    exact = run(artifact, inputs)
    try:
        outputs = run(quantize(artifact, ask("static", "w8a8"), inputs), inputs)
    except UnsupportedError as refusal:
        refused = str(refusal)
    else:
        refused = ""
        assert deviation(exact, outputs).sqnr_db > 25
    if refused:
        assert kind in {"dilated", "transposed"}
        assert "TFLiteConverter cannot" in refused or "LiteRT cannot" in refused


def test_the_first_output_is_the_same_one_in_float_and_quantized(tmp_path):
    """TFLite files list outputs in any order, and here the second comes first."""
    tensorflow()
    import keras

    left, right = keras.Input((8,), name="left"), keras.Input((4,), name="right")
    hidden = keras.layers.Dense(16)(keras.layers.Concatenate()([right, left]))
    heads = [keras.layers.Dense(size, name=name)(hidden) for name, size in (("z", 5), ("a", 3))]
    model = keras.Model([left, right], heads)
    inputs = {"right": examples((4,)), "left": examples((8,))}
    for given in (model, exported(model, tmp_path / "saved")):
        artifact = convert(given)
        exact = BACKEND.open(artifact, never_loaded, 1)(inputs)
        static = BACKEND.quantize(never_loaded, artifact, ask("static", "w8a8"), inputs)
        rough = BACKEND.open(static, never_loaded, 1)(inputs)
        assert list(exact) == list(rough) == ["output_0", "output_1"]
        for name, size in (("output_0", 5), ("output_1", 3)):
            assert exact[name].shape == (16, size)
            assert deviation(exact[name], rough[name]).sqnr_db > 25


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        ask("dynamic", "w8a8"),
        ask("static", "w8a8"),
        ask("dynamic", "w8a8", "simulated"),
        ask("static", "w4a4", "simulated"),
    ],
)
def test_an_example_gives_the_same_alone_and_among_loud_neighbours(quantization):
    artifact = baseline("cnn") if quantization is None else quantized("cnn", quantization)
    executable = BACKEND.open(artifact, never_loaded, threads=1)
    example = digits()["inputs"][:1]
    loud = np.concatenate([example, 100 * digits()["inputs"][1:8]])
    alone = executable({"input": example})["output"][0]
    among = executable({"input": loud})["output"][0]
    np.testing.assert_allclose(among, alone, atol=0.02 * np.abs(alone).max())


def test_a_fresh_process_makes_and_opens_artifacts_and_says_nothing(tmp_path):
    """Nor does it pretend to have more threads than it has started with."""
    wanted = {}
    for number, quantization in enumerate(
        [None, ask("static", "w8a8"), ask("static", "w4a8", "simulated")]
    ):
        artifact = baseline("mlp") if quantization is None else quantized("mlp", quantization)
        path = tmp_path / f"{number}.{artifact.format}"
        path.write_bytes(artifact.data)
        wanted[str(path)] = run(artifact, digits()["inputs"][:4]).tolist()
    program = """
import json, sys
from qb_cluster.catalog.digits import digits
from qb_cluster.contracts import Artifact, ArtifactFacts, Bits, Quantization, Scheme
from qb_cluster.errors import UnsupportedError
from qb_tensorflow import TensorFlowBackend
backend, inputs = TensorFlowBackend(), {"input": digits()["inputs"][:4]}
outputs = {}
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    artifact = Artifact(data, path.rpartition(".")[2], ArtifactFacts(0, 0, 0))
    outputs[path] = backend.open(artifact, None, 1)(inputs)["output"].tolist()
float_artifact = backend.convert(lambda: sys.argv[1], inputs)
for scheme in (Scheme("dynamic", "dynamic"), Scheme("static", "static")):
    quantization = Quantization(scheme, Bits(8, 8), "native")
    calibration = inputs if scheme.name == "static" else None
    quantized = backend.quantize(None, float_artifact, quantization, calibration)
    backend.open(quantized, None, 1)(inputs)
try:
    backend.open(float_artifact, None, 2)
except UnsupportedError as error:
    outputs["refusal"] = str(error)
print(json.dumps(outputs))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *wanted], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    got = json.loads(done.stdout)  # and nothing else
    assert "started with 1 threads in this process and cannot have 2" in got["refusal"]
    for path, outputs in wanted.items():
        np.testing.assert_allclose(got[path], outputs, atol=1e-4)


def test_asking_for_support_imports_no_framework():
    program = """
import sys
from qb_cluster.contracts import Bits, Quantization, Scheme
from qb_tensorflow import TensorFlowBackend
for execution in ("native", "simulated"):
    TensorFlowBackend().support(Quantization(Scheme("s", "static"), Bits(8, 8), execution))
print([name for name in ("tensorflow", "keras", "ai_edge_litert", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


# Bad input


@pytest.mark.parametrize("execution", ["native", "simulated"])
def test_weights_that_are_not_finite_are_refused_by_name(execution):
    model = small_net()
    kernel, bias = model.get_weights()
    kernel[0, 0] = np.nan
    model.set_weights([kernel, bias])
    with pytest.raises(NonFiniteError, match=r"head.*kernel"):
        quantize(convert(model), ask("dynamic", "w8a8", execution))


def test_a_saved_model_with_weights_that_are_not_finite_is_refused(tmp_path):
    model = small_net()
    kernel, bias = model.get_weights()
    model.set_weights([kernel * np.inf, bias])
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        convert(exported(model, tmp_path / "saved"))


@pytest.mark.parametrize(
    "quantization",
    [
        ask("dynamic", "w8a8"),
        ask("static", "w8a8"),
        ask("static", "w8a16"),
        ask("dynamic", "w2a2", "simulated"),
        ask("static", "w4a8", "simulated"),
    ],
)
def test_weights_that_are_all_zero_give_zeros(quantization):
    import keras

    model = small_net(keras.layers.Dense(200))
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    inputs = examples((8,))
    assert not run(quantize(convert(model), quantization, inputs), inputs).any()


@pytest.mark.parametrize("execution", ["native", "simulated"])
def test_a_calibration_set_that_is_empty_or_not_finite_is_refused(execution):
    artifact, quantization = convert(small_net()), ask("static", "w8a8", execution)
    with pytest.raises(DataError):
        quantize(artifact, quantization, examples((8,), count=0))
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError):
            quantize(artifact, quantization, np.full((4, 8), bad, np.float32))


def test_something_that_is_no_keras_model_is_refused_by_name():
    with pytest.raises(PlugInError, match=r"builtins\.dict"):
        convert({})
    with pytest.raises(PlugInError, match="cannot be read"):
        convert("nowhere.keras")


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle", "no weights", "bad h5"])
def test_a_damaged_keras_file_is_a_clear_error_and_runs_nothing(damage, tmp_path):
    import io
    import pickle
    import zipfile

    whole = baseline("mlp").data
    victim = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return victim.touch, ()

    def rezipped(change):
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                if (content := change(name, old.read(name))) is not None:
                    new.writestr(name, content)
        return file.getvalue()

    path = tmp_path / "net.keras"
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "garbage": b"garbage" * 1000,
            "pickle": pickle.dumps(Bomb()),
            "no weights": rezipped(lambda name, text: None if name.endswith(".h5") else text),
            "bad h5": rezipped(lambda name, text: text[:999] if name.endswith(".h5") else text),
        }[damage]
    )
    with pytest.raises(PlugInError, match=r"\.keras archive"):
        convert(str(path))
    with pytest.raises(PlugInError, match=r"\.keras archive"):
        run(Artifact(path.read_bytes(), "keras", baseline("mlp").facts), digits()["inputs"])
    assert not victim.exists()


def test_lambdas_and_foreign_classes_are_refused_and_never_run(tmp_path):
    tensorflow()
    import keras

    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    victim = tmp_path / "executed"

    def spy(inputs):
        victim.touch()
        return inputs

    with_lambda = small_net(keras.layers.Lambda(spy, name="spy"))
    victim.unlink()
    with pytest.raises(UnsupportedError, match="Lambda layer, 'spy'"):
        convert(with_lambda)
    assert not victim.exists()
    doubled = small_net(Doubled(name="twice"))
    with pytest.raises(UnsupportedError, match=r"Doubled\), 'twice'.*SavedModel"):
        convert(doubled)
    artifact = convert(exported(doubled, tmp_path / "saved"))  # as the message says
    np.testing.assert_allclose(
        run(artifact, examples((8,))), doubled(examples((8,))).numpy(), atol=1e-5
    )
    with pytest.raises(UnsupportedError, match="graph without layers"):
        quantize(artifact, ask("none", "w4", "simulated"))


def test_a_subclassed_model_is_told_to_come_as_a_saved_model():
    tensorflow()
    import keras

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(examples((8,)))
    with pytest.raises(UnsupportedError, match=r"model\.export"):
        convert(model)


def test_a_damaged_saved_model_is_a_clear_error(tmp_path):
    folder = tmp_path / "saved"
    exported(small_net(), folder)
    graph = folder / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(PlugInError, match=r"model\.export"):
        convert(str(folder))
    exported(small_net(), tmp_path / "other")
    (tmp_path / "other" / "variables" / "variables.index").write_bytes(b"cut")
    with pytest.raises(PlugInError, match=r"model\.export"):
        convert(str(tmp_path / "other"))
    with pytest.raises(PlugInError, match="no packed SavedModel"):
        run(Artifact(b"cut", "saved_model.zip", baseline("mlp").facts), examples((8,)))


def test_a_saved_model_that_writes_files_is_refused(tmp_path):
    tf = tensorflow()
    victim = tmp_path / "written"

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8])])
        def __call__(self, image):
            tf.io.write_file(str(victim), "x")
            return {"output": image}

    model = Writer()
    with quiet():
        tf.saved_model.save(model, str(tmp_path / "saved"), signatures=model.__call__)
    with pytest.raises(UnsupportedError, match="WriteFile"):
        convert(str(tmp_path / "saved"))
    assert not victim.exists()


def test_an_input_of_another_name_is_asked_for():
    tensorflow()
    import keras

    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    executable = BACKEND.open(convert(keras.Model([left, right], left + right)), never_loaded, 1)
    with pytest.raises(Exception, match="no input right; it has left, wrong"):
        executable({"left": np.zeros((1, 2)), "wrong": np.zeros((1, 2))})


@pytest.mark.parametrize("operation", ["cholesky", "erfinv"])
def test_what_the_converter_cannot_do_is_one_line_that_holds_the_cause(operation):
    import keras

    entered = keras.Input((8,))
    rows = keras.layers.Dense(4)(entered)
    square = keras.ops.matmul(keras.ops.expand_dims(rows, -1), keras.ops.expand_dims(rows, 1))
    net = keras.Model(entered, getattr(keras.ops, operation)(square))
    inputs = {"input": np.ones((4, 8), np.float32)}
    baseline = BACKEND.convert(lambda: net, {"input": inputs["input"][:1]})
    static = Quantization(Scheme("static", "static"), Bits(8, 8), "native", Calibration())
    cause = rf"to this model \(ConverterError: 'tf\.{operation.title()}' op is neither .*\); "
    with pytest.raises(UnsupportedError, match=cause) as raised:
        BACKEND.quantize(lambda: net, baseline, static, inputs)
    assert "\n" not in str(raised.value)
    assert "fused" not in str(raised.value)
