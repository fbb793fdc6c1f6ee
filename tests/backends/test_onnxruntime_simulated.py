"""Simulated ONNX Runtime: the same numbers as pytorch's simulation, in the graph of the file."""

import functools
import itertools

import numpy as np
import onnx
import pytest
import torch
from attention_net import Vit
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref, Scheme
from qb_cluster.errors import DataError, NonFiniteError, PlugInError, UnsupportedError
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    symmetric_qparams,
)
from qb_cluster.quantization.observers import make_observer
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_onnxruntime import OnnxRuntimeBackend, rounding
from qb_onnxruntime.runtime import ONE_BY_ONE, Session
from qb_pytorch import PyTorchBackend

pytestmark = pytest.mark.frameworks

OURS, TORCH = OnnxRuntimeBackend(), PyTorchBackend()
OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")
RNG = np.random.default_rng(5)


class Steps(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.steps = kind(12, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 10)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(self.steps(self.embed(input))[0][:, -1])


class Unet(nn.Module):
    """Transposed and grouped convolutions, and a shortcut that a ReLU does not follow alone."""

    def __init__(self):
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        values = torch.relu(self.down_norm(self.down(input)))
        mixed = self.mix(values)
        values = torch.clamp(self.up_norm(self.up(mixed + mixed.relu())), 0, 6)
        return self.out(values)


NETS = {
    "vit": Vit,
    "unet": Unet,
    "lstm": functools.partial(Steps, nn.LSTM),
    "gru both ways": functools.partial(Steps, nn.GRU, bidirectional=True),
    "two lstms both ways": functools.partial(Steps, nn.LSTM, bidirectional=True, num_layers=2),
}
DIGITS = ("digits-mlp", "digits-cnn")


@functools.cache
def given(net):
    """A model, its inputs and calibration examples."""
    if net in DIGITS:
        dataset = load_dataset(Ref("digits", "digits"))
        model = plugins.make("model", Ref(net, net))
        return model, {"input": dataset.inputs["input"][:100]}, dataset.inputs["input"][100:140]
    torch.manual_seed(0)
    model = NETS[net]().eval()
    rng = np.random.default_rng(0)
    shape = {"vit": (40, 12, 16), "unet": (40, 1, 16, 16)}.get(net)
    array = rng.integers(0, 50, (40, 10))
    if shape is not None:
        array = rng.standard_normal(shape).astype(np.float32)
    return model, {"input": array}, array[:32]


@functools.cache
def baseline(net):
    model, inputs, _ = given(net)
    example = {"input": inputs["input"][:1]}
    return OURS.convert(lambda: model, example), TORCH.convert(lambda: model, example)


def asked(bits, activations="none", calibration=None, **options):
    if activations == "static":
        calibration = calibration or Calibration()
    bits = Bits.parse(bits) if isinstance(bits, str) else bits
    return Quantization(Scheme("mine", activations, **options), bits, "simulated", calibration)


def simulated(net, quantization):
    """The artifacts and outputs of ours and of pytorch's simulation, and ours in float."""
    model, inputs, examples = given(net)
    calibration = {"input": examples} if quantization.calibration else None
    found = []
    for backend, float_artifact in zip((OURS, TORCH), baseline(net), strict=True):
        assert backend.support(quantization).supported
        artifact = backend.quantize(lambda: model, float_artifact, quantization, calibration)
        found.append((artifact, run(backend, artifact, model, inputs)))
    return *found, run(OURS, baseline(net)[0], model, inputs)


def run(backend, artifact, model, inputs):
    return next(iter(backend.open(artifact, lambda: model, 1)(inputs).values()))


def sqnr_db(reference, other):
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    return 10 * np.log10(np.sum(reference**2) / max(np.sum((reference - other) ** 2), 1e-300))


def tensors(artifact):
    graph = onnx.load_from_string(artifact.data).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def agree(net, quantization, least=60, apart=0.1):
    """Ours and pytorch's are near each other, and as far from float."""
    (artifact, ours), (like, theirs), exact = simulated(net, quantization)
    assert sqnr_db(theirs, ours) > least
    assert sqnr_db(exact, ours) == pytest.approx(sqnr_db(exact, theirs), abs=apart)
    return artifact.facts, like.facts


# Weights


def to_powers(weights, bits):
    return np.round(weights * 2**bits) / 2**bits


WEIGHTS = [
    {},
    {"granularity": "per_tensor"},
    {"granularity": "per_group", "group_size": 5},
    {"symmetric": False},
    {"narrow_range": False},
    {"weight_range": "mse"},
    {"weight_range": "signed_max", "narrow_range": False},
    {"number": "fp8_e4m3"},
    {"number": "fp8_e5m2", "granularity": "per_group", "group_size": 4},
    {"weight_quantizer": to_powers},
]


def named(options):
    return " ".join(str(getattr(value, "__name__", value)) for value in options.values()) or "usual"


@pytest.mark.parametrize("options", WEIGHTS, ids=named)
@pytest.mark.parametrize("net", ["digits-mlp", "lstm"])
def test_weights_are_those_of_the_reference_arithmetic(net, options):
    scheme = Scheme("mine", **options)
    facts, like = agree(net, asked(scheme.fixed_bits or "w3", **options))
    assert facts.quantized_parameters == like.quantized_parameters
    assert facts.parameter_bytes is None
    assert facts.integer_mac_share == facts.integer_layer_mac_share == 0
    assert facts.notes == facts.fallback_ops == ()


@pytest.mark.parametrize("options", WEIGHTS, ids=named)
def test_stored_weights_of_convolutions_and_embeddings_are_so_to_the_bit(options):
    scheme = Scheme("mine", **options)
    bits = scheme.fixed_bits or Bits(5)
    axes = {"down.weight": 0, "mix.weight": 0, "up.weight": 1, "out.weight": 0}
    for net, names in (("unet", axes), ("lstm", {"embed.weight": 0})):
        artifact = OURS.quantize(lambda: None, baseline(net)[0], asked(bits, **options), None)
        exact, found = tensors(baseline(net)[0]), tensors(artifact)
        for name, axis in names.items():
            rows = quantize_dequantize_weights(np.moveaxis(exact[name], axis, 0), scheme, bits)
            np.testing.assert_array_equal(found[name], np.moveaxis(rows, 0, axis))


@pytest.mark.parametrize("options", WEIGHTS[:4], ids=named)
def test_each_direction_of_a_recurrent_layer_has_scales_of_its_own(options):
    agree("gru both ways", asked("w3", **options))


# Activations

WIDTHS = ("w4a6", "w6a4", "w8a8", "w3a16")
ACTIVATIONS = [
    ("dynamic", {}),
    ("dynamic", {"symmetric_activations": True}),
    ("static", {"scope": "inputs"}),
    ("static", {"scope": "layers"}),
    ("static", {"scope": "layers", "symmetric_activations": True}),
]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("activations", "options"), ACTIVATIONS)
@pytest.mark.parametrize("net", DIGITS)
def test_activations_are_rounded_where_and_as_pytorch_rounds_them(net, activations, options, bits):
    facts, like = agree(net, asked(bits, activations, **options), least=45)
    assert facts.scope == like.scope
    assert facts.coverage == like.coverage


@pytest.mark.parametrize("bits", ["w8a8", "w4a6"])
@pytest.mark.parametrize(("activations", "options"), ACTIVATIONS)
@pytest.mark.parametrize("net", [net for net in NETS if net != "vit"])
def test_states_and_transposed_convolutions_are_rounded_as_pytorch_rounds_them(
    net, activations, options, bits
):
    facts, like = agree(net, asked(bits, activations, **options), least=45)
    assert facts.coverage == like.coverage
    assert facts.notes == ()


@pytest.mark.parametrize("bits", ["w8a8", "w6a8"])
@pytest.mark.parametrize(("activations", "options"), ACTIVATIONS[:3])
def test_the_projections_of_attention_are_rounded_as_pytorch_rounds_them(
    activations, options, bits
):
    facts, _ = agree("vit", asked(bits, activations, **options), least=45)
    assert facts.coverage == {"linear": (16 * 64 + 4 * 64 * 64 + 640,) * 2}


def test_three_projections_that_the_file_holds_as_one_product_have_one_output_range():
    quantization = asked("w8a8", "static", scope="layers")
    (_, ours), (_, theirs), exact = simulated("vit", quantization)
    assert sqnr_db(theirs, ours) > 35
    assert abs(sqnr_db(exact, ours) - sqnr_db(exact, theirs)) < 0.5


@pytest.mark.parametrize("number", ["fp16", "bf16"])
@pytest.mark.parametrize("net", ["digits-cnn", "vit", "lstm"])
def test_sixteen_bit_formats_round_the_inputs_of_layers_too(net, number):
    (_, ours), (_, theirs), exact = simulated(net, asked("w16a16", number=number))
    floor = sqnr_db(exact, theirs)
    # Batch normalization is folded into the file's weights before they are rounded.
    assert sqnr_db(exact, ours) == pytest.approx(floor, abs=2)
    if net != "digits-cnn":
        assert sqnr_db(theirs, ours) > floor + 10


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("net", ["digits-mlp", "lstm"])
def test_ranges_are_those_of_the_observer(net, observer):
    calibration = Calibration(observer=observer, percentile=99.0)
    # A moving average goes over sequences here, and over steps there.
    apart, least = (1, 20) if (net, observer) == ("lstm", "moving_average") else (0.1, 45)
    agree(net, asked("w8a5", "static", calibration, scope="layers"), least, apart)


def test_a_moving_average_goes_over_examples_wherever_a_graph_has_them(tmp_path):
    x = RNG.normal(size=(30, 5, 6)).astype(np.float32) * np.linspace(1, 9, 30)[:, None, None]
    nodes = [
        helper.make_node("Flatten", ["x"], ["rows"], axis=2),
        helper.make_node("MatMul", ["rows", "w"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, {"w": RNG.normal(size=(6, 4))}, ["n", 5, 6])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 5, 4]), "shape"))
    onnx.save(model, path)
    calibration = Calibration(observer="moving_average")
    quantization = asked("w8a8", "static", calibration, scope="inputs")
    artifact, *_ = file_outputs(path, x.astype(np.float32), quantization)
    observer = make_observer(calibration, 8, symmetric=False)
    observer.update(x)
    scale, _ = affine_qparams(*observer.range(), 8)
    found = [value for name, value in tensors(artifact).items() if name.endswith("_constant_0")]
    np.testing.assert_allclose(found, [scale], rtol=1e-6)


def test_layers_may_have_activations_of_other_widths_or_stay_float():
    layers = (("1", "w8a4"), ("3", "float"))
    for activations in ("dynamic", "static"):
        agree("digits-mlp", asked("w4a8", activations, scope="inputs", layers=layers), least=45)


def test_kinds_of_layers_are_rounded_as_the_scheme_names_them():
    for weights in (("recurrent",), ("embedding", "linear")):
        facts, like = agree("lstm", asked("w3a6", "dynamic", weights=weights), least=45)
        assert facts.coverage == like.coverage
        assert set(facts.coverage) == set(weights)


def test_an_example_gives_the_same_alone_and_among_loud_neighbours():
    for net, loud in (("digits-cnn", 100), ("lstm", 1)):
        array = given(net)[1]["input"][:4].copy()
        array[1:] *= loud
        artifact = OURS.quantize(lambda: None, baseline(net)[0], asked("w8a8", "dynamic"), None)
        alone, among = (run(OURS, artifact, None, {"input": part}) for part in (array[:1], array))
        np.testing.assert_array_equal(among[:1], alone)


# Rounding itself


def value(name, shape=None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def one_rounding(rounder):
    """Open a graph of this rounding alone."""
    node = helper.make_node("Identity", ["x"], ["y"], "it")
    tensors = rounding.apply(node, rounder)
    x, y = (value(name, ["n"]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "graph", [x], [y], tensors),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    rounding.define(model, [rounder.function])
    onnx.checker.check_model(model, full_check=True)
    session = Session(model.SerializeToString(), 1)
    return lambda values: session({"x": values})["y"]


VALUES = {
    "both signs": RNG.normal(0, 3, 999),
    "positive": RNG.gamma(2, 1, 999),
    "negative": -RNG.gamma(2, 1, 999),
    "ties": np.arange(-64, 64) / 2,
    "zeros": np.zeros(7),
    "denormal": np.array([1e-42, -1e-43]),
    "huge": np.array([3e37, -3e37, 1.0]),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
@pytest.mark.parametrize("kind", VALUES)
def test_operators_round_to_the_bit_as_the_reference_does(kind, bits, symmetric):
    values = VALUES[kind].astype(np.float32)
    low, high = float(values.min()), float(values.max())
    scale, zero_point = (symmetric_qparams if symmetric else affine_qparams)(low, high, bits)
    expected = quantize_dequantize_affine(values, np.float32(scale), zero_point, bits)
    for rounder in (
        rounding.dynamic(bits, symmetric=symmetric),
        rounding.static(low, high, bits, symmetric=symmetric),
    ):
        np.testing.assert_array_equal(one_rounding(rounder)(values), expected)


@pytest.mark.parametrize(("number", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_casts_survive_what_sessions_optimize(number, dtype):
    values = VALUES["both signs"].astype(np.float32)
    expected = torch.from_numpy(values).to(dtype).to(torch.float32).numpy()
    found = one_rounding(rounding.Rounder(rounding.CASTS[number]))(values)
    np.testing.assert_array_equal(found, expected)


# Files


def saved(path, nodes, weights, shape, opset=21):
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", shape)],
        [value("y")],
        [numpy_helper.from_array(np.asarray(array, np.float32), n) for n, array in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10),
        path,
    )
    return path


def file_outputs(path, x, quantization):
    """The artifact of a file, with its outputs in float and quantized."""
    float_artifact = OURS.convert(lambda: path, {"x": x[:1]})
    calibration = {"x": x} if quantization.calibration else None
    artifact = OURS.quantize(lambda: path, float_artifact, quantization, calibration)
    return artifact, *(run(OURS, each, None, {"x": x}) for each in (float_artifact, artifact))


@pytest.mark.parametrize(("activations", "bits"), [("none", "w3"), ("static", "w4a6")])
def test_a_file_simulates_as_the_net_that_it_was_made_from(tmp_path, activations, bits):
    model, inputs, examples = given("digits-cnn")
    path = tmp_path / "model.onnx"
    path.write_bytes(baseline("digits-cnn")[0].data)
    quantization = asked(bits, activations)
    calibration = {"input": examples} if activations == "static" else None
    float_artifact = OURS.convert(lambda: path, {"input": inputs["input"][:1]})
    artifact = OURS.quantize(lambda: path, float_artifact, quantization, calibration)
    (_, expected), *_ = simulated("digits-cnn", quantization)
    np.testing.assert_array_equal(run(OURS, artifact, model, inputs), expected)


def test_the_output_of_a_layer_is_what_follows_it_alone(tmp_path):
    x = RNG.normal(size=(30, 6)).astype(np.float32)
    one, two, bias = RNG.normal(size=(6, 5)), RNG.normal(size=(5, 4)), RNG.normal(size=5)
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "two"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    weights = {"one": one, "two": two, "bias": bias}
    path = saved(tmp_path / "model.onnx", nodes, weights, ["n", 6])
    quantization = asked("w16a4", "static", scope="layers")
    _, _, found = file_outputs(path, x, quantization)

    exact_c = np.maximum(x @ one + bias, 0)
    exact_d = exact_c @ two

    def quantized(values, like):
        scale, zero_point = affine_qparams(float(like.min()), float(like.max()), 4)
        return quantize_dequantize_affine(values, scale, zero_point, 4)

    c = quantized(np.maximum(quantized(x, x) @ one + bias, 0), exact_c)
    d = quantized(c @ two, exact_d)
    expected = d + np.maximum(d, 0)
    assert sqnr_db(expected, found) > 45


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("function", ["Tanh", "Relu"])
def test_a_recurrent_node_of_one_gate_is_rounded_as_torch_s_is(tmp_path, function, activations):
    torch.manual_seed(0)
    net = nn.RNN(6, 8, nonlinearity=function.lower(), batch_first=True, bidirectional=True).eval()
    ends = ("", "_reverse")
    stacked = {
        kind: np.stack([getattr(net, f"{kind}_l0{end}").detach().numpy() for end in ends])
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    biases = np.concatenate([stacked.pop("bias_ih"), stacked.pop("bias_hh")], axis=1)
    settings = {"direction": "bidirectional", "activations": [function] * 2, "hidden_size": 8}
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("RNN", ["steps", "weight_ih", "weight_hh", "bias"], ["all"], **settings),
        helper.make_node("Transpose", ["all"], ["first"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["first", "shape"], ["y"]),
    ]
    path = saved(tmp_path / "model.onnx", nodes, {**stacked, "bias": biases}, ["n", 5, 6])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 5, 16]), "shape"))
    model.graph.output[0].CopyFrom(value("y", ["n", 5, 16]))
    onnx.save(model, path)
    x = RNG.normal(size=(20, 5, 6)).astype(np.float32)
    quantization = asked("w5a6", activations, scope="inputs")
    artifact, _, found = file_outputs(path, x, quantization)
    onnx.checker.check_model(onnx.load_from_string(artifact.data))
    float_artifact = TORCH.convert(lambda: net, {"input": x[:1]})
    examples = {"input": x} if quantization.calibration else None
    like = TORCH.quantize(lambda: net, float_artifact, quantization, examples)
    assert sqnr_db(run(TORCH, like, net, {"input": x}), found) > 45
    assert artifact.facts.coverage == like.facts.coverage


def lstm_file(path, **settings):
    weights = {
        "kernel": RNG.normal(size=(1, 32, 6)) / 3,
        "recurrent": RNG.normal(size=(1, 32, 8)) / 3,
    }
    read, made = ["steps", "kernel", "recurrent"], ["", "last"]
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", read, made, "rnn", hidden_size=8, **settings),
        helper.make_node("Transpose", ["last"], ["y"], perm=[1, 0, 2]),
    ]
    return saved(path, nodes, weights, ["n", 5, 6])


def test_a_recurrent_node_of_other_functions_keeps_its_state_float_and_says_so(tmp_path):
    x = RNG.normal(size=(10, 5, 6)).astype(np.float32)
    plain = lstm_file(tmp_path / "plain.onnx")
    hard = lstm_file(tmp_path / "hard.onnx", activations=["HardSigmoid", "Tanh", "Tanh"])
    for path, notes in (
        (plain, ()),
        (hard, ("the states of 1 recurrent nodes stay float (rnn)",)),
    ):
        for activations in ("dynamic", "static"):
            artifact, exact, found = file_outputs(path, x, asked("w8a6", activations))
            assert artifact.facts.notes == notes
            assert 15 < sqnr_db(exact, found) < 45


def test_one_weight_of_a_recurrent_node_may_stay_float(tmp_path):
    x = RNG.normal(size=(10, 5, 6)).astype(np.float32)
    path = lstm_file(tmp_path / "model.onnx")
    noise = []
    for layers in ((), (("recurrent", "float"),), (("kernel", "float"),)):
        artifact, exact, found = file_outputs(path, x, asked("w8a4", "static", layers=layers))
        noise.append(float(np.sum((exact - found) ** 2)))
        left = dict(layers).keys()
        sizes = {"kernel": 32 * 6, "recurrent": 32 * 8}
        total = sum(size for name, size in sizes.items() if name not in left)
        assert artifact.facts.coverage == {"recurrent": (total, total)}
    assert min(noise) > 0
    assert len(set(noise)) == 3


def test_weights_that_subgraphs_read_stay_float_there_and_the_facts_say_so(tmp_path):
    x = np.abs(RNG.normal(size=(10, 6))).astype(np.float32)
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "shared"], ["inner_y"])], "inner", [], [value("inner_y")]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["outer"], "outer"),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "nought"], ["go"]),
        helper.make_node("If", ["go"], ["branch"], then_branch=inner, else_branch=inner),
        helper.make_node("Sub", ["outer", "branch"], ["y"]),
    ]
    weights = {"shared": RNG.normal(size=(6, 5)), "nought": 0.0}
    artifact, _, found = file_outputs(
        saved(tmp_path / "model.onnx", nodes, weights, ["n", 6]), x, asked("w3")
    )
    exact = weights["shared"].astype(np.float32)
    rounded = quantize_dequantize_weights(exact.T, Scheme("mine"), Bits(3)).T
    np.testing.assert_allclose(found, x @ rounded - x @ exact, atol=1e-4)
    assert artifact.facts.notes == ("2 products in subgraphs (If, Loop, Scan) stay float",)


def test_a_stack_of_matrices_stays_float_and_is_named(tmp_path):
    x = RNG.normal(size=(10, 3, 2, 6)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "stack"], ["a"]),
        helper.make_node("MatMul", ["a", "plain"], ["y"]),
    ]
    weights = {"stack": RNG.normal(size=(3, 6, 6)), "plain": RNG.normal(size=(6, 4))}
    path = saved(tmp_path / "model.onnx", nodes, weights, ["n", 3, 2, 6])
    artifact, *_ = file_outputs(path, x, asked("w8"))
    assert artifact.facts.fallback_ops == ("MatMul",)
    assert artifact.facts.notes == ("1 of 2 weight tensors stay float",)


def test_a_file_without_weights_is_unsupported(tmp_path):
    x = np.ones((2, 3), np.float32)
    path = saved(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 3])
    with pytest.raises(UnsupportedError, match="has none"):
        file_outputs(path, x, asked("w8"))


# What is refused


def test_any_width_is_simulated_with_the_scope_of_the_native_recipe():
    for weight, activation in itertools.product((2, 3, 5, 7, 9, 16), (None, 2, 6, 16)):
        activations = "none" if activation is None else "static"
        told = OURS.support(asked(Bits(weight, activation), activations))
        assert told.supported
        assert told.scope == (None if activation is None else "layers")
    assert OURS.support(asked("w4a4", "dynamic")).scope == "inputs"


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        (asked("w8a8", "static", scope="all"), "only inputs and outputs of layers are simulated"),
        (asked("w8a8", "dynamic", scope="layers"), "for inputs only, not 'layers'"),
        (asked("w8a8"), "does not take w8a8"),
    ],
)
def test_what_is_not_simulated_says_why(quantization, reason):
    told = OURS.support(quantization)
    assert not told.supported
    assert reason in told.reason


def test_bad_weights_and_calibration_are_named():
    model, _, examples = given("digits-mlp")
    made = functools.partial(OURS.quantize, lambda: model, baseline("digits-mlp")[0])
    with pytest.raises(DataError, match="no"):
        made(asked("w8a8", "static"), {"input": examples[:0]})
    with pytest.raises(NonFiniteError, match="activation '"):
        made(asked("w8a8", "static"), {"input": examples * np.float32(np.nan)})
    with pytest.raises(PlugInError, match="in the same shape"):
        made(asked("w8", weight_quantizer=lambda weights, _: weights[:1]), None)
    with pytest.raises(PlugInError, match="leave all of this model float"):
        made(asked("w8", layers=(("*", "float"),)), None)


def test_the_artifact_opens_without_onnx_and_keeps_one_by_one_of_dynamic_files():
    artifact = OURS.quantize(
        lambda: None, baseline("digits-mlp")[0], asked("w4a6", "dynamic"), None
    )
    model = onnx.load_from_string(artifact.data)
    assert ONE_BY_ONE in {entry.key for entry in model.metadata_props}
    assert {function.name for function in model.functions} == {"RoundDynamic"}


# Sensitivity


@pytest.mark.parametrize(
    ("net", "quantization"),
    [
        ("digits-mlp", asked("w3")),
        ("digits-cnn", asked("w4a6", "static", scope="inputs")),
        ("unet", asked("w8a8", "static", scope="layers", layers=(("mix", "w4a8"),))),
        ("unet", asked("w4a6", "dynamic", layers=(("up", "float"),))),
    ],
)
def test_layer_sensitivity_is_that_of_pytorch(net, quantization):
    model, inputs, examples = given(net)
    calibration = {"input": examples} if quantization.calibration else None
    ours, theirs = (
        backend.layer_sensitivity(lambda: model, quantization, calibration, inputs)
        for backend in (OURS, TORCH)
    )
    for one, two in zip(ours, theirs, strict=True):
        for name in ("layer", "mode", "parameters", "macs", "bits"):
            assert getattr(one, name) == getattr(two, name)
        assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=0.1)
        assert one.expected_weight_sqnr_db == two.expected_weight_sqnr_db
        if one.mode == "only":
            assert one.weight_sqnr_db == pytest.approx(two.weight_sqnr_db, abs=0.1)


def test_an_embedding_has_rows_and_so_has_each_weight_of_a_recurrent_node():
    model, inputs, examples = given("lstm")
    quantization = asked("w4a6", "static", scope="inputs")
    rows = OURS.layer_sensitivity(lambda: model, quantization, {"input": examples}, inputs)
    only = {row.layer: row for row in rows if row.mode == "only"}
    assert [row.mode for row in rows] == ["only", "all_but"] * 4
    head, embed, *steps = only.values()
    assert (head.layer, embed.layer) == ("head", "embed")
    assert (embed.parameters, embed.macs) == (600, 0)
    assert [step.layer for step in steps] == ["steps.weight_ih_l0", "steps.weight_hh_l0"]
    assert sum(step.parameters for step in steps) == 4 * 16 * 28
    assert sum(step.macs for step in steps) == 10 * 4 * 16 * 28
    for step in steps:
        assert step.weight_sqnr_db == pytest.approx(step.expected_weight_sqnr_db, abs=5)
    exact = run(OURS, baseline("lstm")[0], model, inputs)
    for layer, row in only.items():  # each is a cell in which the others stay float
        layers = ((layer, "w4a6"), ("*", "float"))
        cell = asked("w4a6", "static", scope="inputs", layers=layers)
        artifact = OURS.quantize(lambda: model, baseline("lstm")[0], cell, {"input": examples})
        found = run(OURS, artifact, model, inputs)
        assert row.sqnr_db == pytest.approx(sqnr_db(exact, found), abs=0.05)


def test_layers_of_a_file_are_measured(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(baseline("digits-mlp")[0].data)
    _, inputs, _ = given("digits-mlp")
    rows = OURS.layer_sensitivity(lambda: path, asked("w4"), None, inputs)
    assert len(rows) == 2 * 3
    with pytest.raises(PlugInError, match="'haed'"):
        OURS.layer_sensitivity(lambda: path, asked("w4", layers=(("haed", "w8"),)), None, inputs)
