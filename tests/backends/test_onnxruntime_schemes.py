"""Every option of a scheme on the ONNX Runtime backend, on two small nets."""

import copy
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import DataError, NonFiniteError, PlugInError, UnsupportedError
from qb_cluster.quantization.affine import affine_qparams, symmetric_qparams
from qb_cluster.quantization.observers import make_observer
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_onnxruntime import OnnxRuntimeBackend
from qb_onnxruntime.runtime import int8_products_saturate

pytestmark = pytest.mark.frameworks

RNG = np.random.default_rng(3)
IMAGES = RNG.normal(0.3, 1, (40, 3, 8, 8)).astype(np.float32)
GRANULARITIES = (("per_tensor", None), ("per_channel", None), ("per_group", 32), ("per_group", 12))
OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(432, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    ).eval()


class Attention(nn.Module):
    """Linear layers of three axes, which the exporter transposes, and products of activations."""

    def __init__(self):
        super().__init__()
        self.inputs = nn.Linear(64, 64)
        self.query = nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 5)

    def forward(self, input):  # noqa: A002 - the contract's name
        hidden = self.inputs(input.flatten(2))
        scores = self.query(hidden) @ hidden.transpose(1, 2) / 64
        return self.head((scores.softmax(-1) @ hidden).mean(1))


def attention():
    torch.manual_seed(1)
    return Attention().eval()


NETS = {"cnn": cnn, "attention": attention}


@pytest.fixture(scope="module")
def baselines():
    return {
        name: OnnxRuntimeBackend().convert(net, {"input": IMAGES[:1]}) for name, net in NETS.items()
    }


def asked(bits, activations="none", calibration=None, **options):
    if activations == "static":
        calibration = calibration or Calibration()
    scheme = Scheme("scheme", activations, **options)
    return Quantization(scheme, Bits.parse(bits), "native", calibration)


def quantized(baseline, quantization, examples=IMAGES, backend=None):
    backend = backend or OnnxRuntimeBackend()
    told = backend.support(quantization)
    assert told.supported, told.reason
    calibration = {"input": examples} if quantization.calibration else None
    return backend.quantize(lambda: None, baseline, quantization, calibration)


def output(artifact, images=IMAGES):
    return OnnxRuntimeBackend().open(artifact, lambda: None, 1)({"input": images})["output"]


def sqnr_db(reference, other):
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    noise = max(np.sum((reference - other) ** 2), 1e-300)
    return 10 * np.log10(np.sum(reference**2) / noise)


def tensors(artifact):
    graph = onnx.load_from_string(artifact.data).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def rounded(model, quantization):
    """Give the outputs with the reference's weights in the layers that are quantized."""
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        bits = quantization.layer_bits(name)
        if isinstance(layer, nn.Conv2d | nn.Linear) and bits is not None:
            weight = layer.weight.detach().numpy()
            weight = quantize_dequantize_weights(weight, quantization.scheme, bits)
            layer.weight = nn.Parameter(torch.from_numpy(weight))
    with torch.no_grad():
        return model(torch.from_numpy(IMAGES)).numpy()


# Granularity, symmetry, ranges


def grid():
    for (granularity, group), symmetric in product(GRANULARITIES, (True, False)):
        options = {"granularity": granularity, "group_size": group, "symmetric": symmetric}
        for weight in (2, 4, 8, 16):
            yield asked(f"w{weight}", **options)
            for a, activations in product((8, 16), ("dynamic", "static")):
                for same in (True, False):
                    yield asked(
                        f"w{weight}a{a}", activations, symmetric_activations=same, **options
                    )


ENTRIES = [q for q in grid() if OnnxRuntimeBackend().support(q).supported]
LEAST_DB = {None: 85, 8: 18, 16: 60}
"""What rounding activations leaves, against the model with the reference's weights."""


def affine_convolutions(quantization):
    scheme = quantization.scheme
    per_channel = scheme.granularity == "per_channel"
    return scheme.activations == "dynamic" and not scheme.symmetric and per_channel


def has_no_exact_kernel(quantization):
    """Whether this CPU is one whose fast kernels saturate, and onnxruntime has no others."""
    scheme, is_int8 = quantization.scheme, str(quantization.bits) == "w8a8"
    is_signed = scheme.activations == "dynamic" and scheme.symmetric_activations
    return int8_products_saturate() and is_int8 and is_signed


def test_the_grid_holds_every_activation_scheme_and_granularity():
    found = {(q.scheme.activations, q.scheme.granularity) for q in ENTRIES}
    integer = {(a, g) for a in ("dynamic", "static") for g in ("per_tensor", "per_channel")}
    assert found == integer | {("none", granularity) for granularity, _ in GRANULARITIES}
    assert len(ENTRIES) == 32 + 24 + 64


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("activations", ["none", "dynamic", "static"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_native_entry_computes_with_the_weights_of_the_reference(
    baselines, net, activations, symmetric
):
    entries = [q for q in ENTRIES if q.scheme.activations == activations]
    for quantization in (q for q in entries if q.scheme.symmetric == symmetric):
        if net == "cnn" and affine_convolutions(quantization):
            continue  # what stays float is the next test's
        bits = quantization.bits
        if has_no_exact_kernel(quantization):
            with pytest.raises(UnsupportedError, match="on x86 without VNNI"):
                quantized(baselines[net], quantization)
            continue
        artifact = quantized(baselines[net], quantization, examples=4 * IMAGES)
        agreement = sqnr_db(rounded(NETS[net](), quantization), output(artifact))
        assert agreement > LEAST_DB[bits.activation], (quantization, agreement)
        facts = artifact.facts
        assert facts.notes == ()
        in_integers = bits.activation == 8 and bits.weight <= 8
        products = 2 * 3 * 3 * 64 / (2 * 3 * 64 * 64 + 2 * 3 * 3 * 64 + 64 * 5)
        least = most = float(in_integers)
        if net == "attention" and bits.activation == 8:
            least = most = in_integers * (1 - products)  # of activations, which are not covered
            # Queries and keys are outputs of layers: some CPUs multiply integers all the same.
            most += (activations == "static") * products / 2
        share = facts.integer_mac_share
        assert least - 1e-6 < share < most + 1e-6, quantization
        assert facts.integer_layer_mac_share == float(in_integers), quantization
        assert bool(facts.fallback_ops) == (activations == "static" and not in_integers)
        # A little less where a bias that stands in an Add is stored in the activations' bits.
        assert bits.weight - 0.1 < facts.bits_per_weight < bits.weight + 5


def test_convolutions_without_a_kernel_stay_float_and_are_named(baselines):
    quantization = asked("w8a8", "dynamic", symmetric=False)
    assert "stay float" in OnnxRuntimeBackend().support(quantization).reason
    facts = quantized(baselines["cnn"], quantization).facts
    assert facts.notes == ("2 of 4 weight tensors stay float",)
    assert facts.fallback_ops == ("Conv",)
    convolutions = 64 * 12 * 27 + 36 * 12 * 27
    linear = 432 * 24 + 24 * 10
    assert facts.integer_mac_share == pytest.approx(linear / (linear + convolutions))
    assert facts.integer_layer_mac_share == facts.integer_mac_share  # no attention


def test_neither_a_layer_left_float_nor_attention_counts_among_products_that_are_covered(
    baselines,
):
    quantization = asked("w8a8", "dynamic", layers=(("query", "float"),))
    facts = quantized(baselines["attention"], quantization).facts
    inputs, query, head, activations = 3 * 64 * 64, 3 * 64 * 64, 64 * 5, 2 * 3 * 3 * 64
    layers = inputs + query + head
    assert facts.integer_mac_share == pytest.approx((inputs + head) / (layers + activations))
    assert facts.integer_layer_mac_share == 1
    assert facts.coverage == {"linear": (64 * 64 + 64 * 5, 64 * 64 + 64 * 5)}
    float_facts = baselines["attention"].facts
    assert float_facts.integer_mac_share == float_facts.integer_layer_mac_share == 0


def test_weights_that_reach_a_product_through_other_nodes_are_weights_still(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["input", "plain"], ["a"], name="plain"),
        helper.make_node("Transpose", ["turned"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["b"], name="turned"),
        helper.make_node("MatMul", ["first", "b"], ["c"], name="first"),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["c", "d"], ["output"], name="two_activations"),
    ]
    shapes = {"plain": (16, 32), "turned": (8, 32), "first": (5, 4)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", 1, ["n", 4, 16])],
        [helper.make_tensor_value_info("output", 1, ["n", 5, 5])],
        [
            numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inputs = {"input": RNG.normal(size=(1, 4, 16)).astype(np.float32)}
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    baseline = OnnxRuntimeBackend().convert(lambda: path, inputs)
    facts = quantized(baseline, asked("w8a8", "dynamic")).facts
    plain, with_weights = 4 * 16 * 32, 4 * 16 * 32 + 4 * 32 * 8 + 5 * 4 * 8
    assert facts.integer_mac_share == pytest.approx(plain / (with_weights + 5 * 5 * 8))
    assert facts.integer_layer_mac_share == pytest.approx(plain / with_weights)


def test_a_model_of_which_nothing_has_a_kernel_is_unsupported():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 2))
    baseline = OnnxRuntimeBackend().convert(lambda: model, {"input": IMAGES[:1]})
    with pytest.raises(UnsupportedError, match="use symmetric weights, per_tensor, or weight_only"):
        quantized(baseline, asked("w8a8", "dynamic", symmetric=False))


@pytest.mark.parametrize("bits", ["w4", "w4a8"])
@pytest.mark.parametrize(
    "options", [{"weight_range": "mse"}, {"narrow_range": False}], ids=["mse", "full"]
)
def test_range_options_reach_the_stored_weights(baselines, bits, options):
    for activations in {"w4": ["none"], "w4a8": ["dynamic", "static"]}[bits]:
        quantization = asked(bits, activations, **options)
        artifact = quantized(baselines["cnn"], quantization, examples=4 * IMAGES)
        usual = quantized(baselines["cnn"], asked(bits, activations), examples=4 * IMAGES)
        expected, other = (rounded(cnn(), q) for q in (quantization, asked(bits, activations)))
        agreement = sqnr_db(expected, output(artifact))
        assert agreement > LEAST_DB[quantization.bits.activation]
        assert agreement > sqnr_db(other, output(artifact)) + 5
        assert artifact.data != usual.data


def test_mse_clips_where_it_helps():
    weight = np.clip(RNG.standard_t(3, (64, 432)), -12, 12).astype(np.float32)
    layer = nn.Linear(432, 64, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(weight))
    inputs = RNG.normal(size=(20, 432)).astype(np.float32)
    baseline = OnnxRuntimeBackend().convert(lambda: layer, {"input": inputs[:1]})
    db = [
        sqnr_db(output(baseline, inputs), output(quantized(baseline, quantization), inputs))
        for quantization in (asked("w4"), asked("w4", weight_range="mse"))
    ]
    assert db[1] > db[0] + 1


# Static ranges


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_static_ranges_are_those_of_the_observer(baselines, observer, symmetric):
    calibration = Calibration(observer=observer, percentile=98)
    expected = make_observer(calibration, 8, symmetric=symmetric)
    expected.update(IMAGES)
    qparams = symmetric_qparams if symmetric else affine_qparams
    scale, zero_point = qparams(*expected.range(), 8)
    quantization = asked("w8a8", "static", calibration, symmetric_activations=symmetric)
    found = tensors(quantized(baselines["cnn"], quantization))
    assert found["input_scale"] == pytest.approx(scale, rel=1e-6)
    assert found["input_zero_point"] == zero_point


def test_observers_differ_where_an_outlier_is_1e6(baselines):
    outlier = IMAGES.copy()
    outlier[7, 0, 0, 0] = 1e6
    reference = output(baselines["cnn"])
    db = {}
    for observer in OBSERVERS:
        quantization = asked("w8a8", "static", Calibration(observer=observer, percentile=95))
        result = output(quantized(baselines["cnn"], quantization, outlier))
        assert np.isfinite(result).all()
        db[observer] = sqnr_db(reference, result)
    assert db["minmax"] < 3
    assert db["percentile"] > 20


def test_an_empty_calibration_set_is_a_data_error(baselines):
    with pytest.raises(DataError, match="need calibration examples"):
        quantized(baselines["cnn"], asked("w8a8", "static"), IMAGES[:0])


def test_calibration_on_nan_names_the_activation(baselines):
    broken = IMAGES.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="activation 'input'"):
        quantized(baselines["cnn"], asked("w8a8", "static"), broken)


# 16-bit products must not be rounded to 8 bits on the way


def test_16_bit_activations_keep_16_bits_in_matmul(baselines):
    artifact = quantized(baselines["attention"], asked("w8a16", "static"))
    expected = rounded(attention(), asked("w8a16", "static"))
    assert sqnr_db(expected, output(artifact)) > 60
    assert artifact.facts.integer_mac_share == 0
    assert artifact.facts.fallback_ops == ("Gemm", "MatMul")


def test_only_accuracy_level_4_computes_weight_only_layers_in_integers(baselines):
    for net, least in (("cnn", 0.1), ("attention", 0.8)):
        shares = [
            quantized(
                baselines[net], asked("w4"), backend=OnnxRuntimeBackend(accuracy_level=level)
            ).facts.integer_mac_share
            for level in (1, 4)
        ]
        assert shares[0] == 0
        assert least < shares[1] < 1


# Float formats


@pytest.mark.parametrize("net", NETS)
def test_fp16_halves_the_file_and_keeps_ten_bits(baselines, net):
    artifact = quantized(baselines[net], asked("w16a16", number="fp16"))
    assert artifact.facts.bits_per_weight == 16
    assert artifact.facts.quantized_parameters == artifact.facts.parameters
    assert artifact.facts.integer_mac_share == 0
    assert len(artifact.data) < 0.5 * len(baselines[net].data) + 5_000
    assert 60 < sqnr_db(output(baselines[net]), output(artifact)) < 100


@pytest.mark.parametrize("number", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_fp8_stores_a_byte_a_weight_and_rounds_as_the_reference(baselines, number, granularity):
    quantization = asked("w8", number=number, granularity=granularity)
    for net, baseline in baselines.items():
        artifact = quantized(baseline, quantization)
        assert 8 < artifact.facts.bits_per_weight < 9.5
        assert artifact.facts.notes == ()
        assert sqnr_db(rounded(NETS[net](), quantization), output(artifact)) > 90


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        (asked("w16a16", number="bf16"), "no bfloat16 kernels"),
        (
            asked("w8", number="fp8_e4m3", granularity="per_group", group_size=32),
            "per_tensor or per_channel",
        ),
        (asked("w8a8", "static", granularity="per_group", group_size=32), "weight_only"),
        (asked("w8", layers=(("a", "w3"),)), "no 3-bit integers; onnxruntime takes w2"),
        (asked("w8a8", "static", layers=(("a", "w8a16"),)), "activations of one width"),
    ],
)
def test_what_is_refused_says_what_could_be_had(quantization, reason):
    told = OnnxRuntimeBackend().support(quantization)
    assert not told.supported
    assert reason in told.reason


# Mixed precision


@pytest.mark.parametrize(
    ("bits", "activations", "own"),
    [("w8", "none", "w2"), ("w8a8", "dynamic", "w4a8"), ("w4a8", "static", "w8a8")],
)
def test_layers_get_the_bits_that_their_names_match(baselines, bits, activations, own):
    layers = (("0", "float"), ("[2-5]", own))
    quantization = asked(bits, activations, layers=layers)
    artifact = quantized(baselines["cnn"], quantization, examples=4 * IMAGES)
    expected = rounded(cnn(), quantization)
    assert sqnr_db(expected, output(artifact)) > LEAST_DB[quantization.bits.activation]
    found = tensors(artifact)
    np.testing.assert_array_equal(found["0.weight"], tensors(baselines["cnn"])["0.weight"])
    assert "2.weight" not in found
    assert "7.weight" not in found
    facts = artifact.facts
    assert facts.fallback_ops == ()
    assert facts.notes == ("1 of 4 weight tensors stay float",)
    if activations != "none":
        first, rest = 64 * 12 * 27, 36 * 12 * 27 + 432 * 24 + 24 * 10
        assert facts.integer_mac_share == pytest.approx(rest / (first + rest))
        assert facts.integer_layer_mac_share == 1  # of what the scheme covers


def test_layers_that_the_exporter_transposes_keep_the_names_of_their_modules(baselines):
    for pattern, left in (("head", "head"), ("query", "query"), ("in*", "inputs")):
        quantization = asked("w4", layers=((pattern, "float"),))
        found = tensors(quantized(baselines["attention"], quantization))
        assert {n for n in found if n.endswith(".weight")} == {f"{left}.weight"}


def test_a_pattern_that_matches_nothing_is_named_with_the_layers_there_are(baselines):
    with pytest.raises(PlugInError, match=r"'haed\*' .* \(inputs, query, head\)"):
        quantized(baselines["attention"], asked("w4", layers=(("haed*", "w8"),)))


def test_a_scheme_that_leaves_all_layers_float_is_refused(baselines):
    with pytest.raises(PlugInError, match="leave all of this model float"):
        quantized(baselines["cnn"], asked("w4", layers=(("*", "float"),)))


# Strange weights


def strange(change):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3), nn.Flatten(), nn.Linear(16, 6)
    )
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            change(layer.weight)
    return model.eval()


def tiny_channel(weight):
    weight[0] = 1e-13


STRANGE = {
    "constant": lambda weight: weight.fill_(0.25),
    "zero": lambda weight: weight.zero_(),
    "zero channel": lambda weight: weight[0].zero_(),
    "tiny channel": tiny_channel,
    "denormal": lambda weight: weight.fill_(1e-41),
    "huge": lambda weight: weight.mul_(1e10),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_weights_give_finite_outputs_that_are_nearly_right(kind):
    model = strange(STRANGE[kind])
    baseline = OnnxRuntimeBackend().convert(lambda: model, {"input": IMAGES[:1]})
    reference = output(baseline)
    for symmetric in (True, False):
        for quantization in (
            asked("w8", symmetric=symmetric),
            asked("w8a8", "dynamic", symmetric=symmetric),
            asked("w8a8", "static", symmetric=symmetric),
            asked("w4", granularity="per_group", group_size=5, symmetric=symmetric),
        ):
            result = output(quantized(baseline, quantization))
            assert np.isfinite(result).all()
            assert sqnr_db(reference, result) > 14, quantization


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_a_bias_is_kept_beside_weights_that_are_next_to_nothing(symmetric, granularity):
    torch.manual_seed(2)
    layer = nn.Linear(20, 4)
    with torch.no_grad():
        layer.weight.mul_(1e-13)
    inputs = RNG.normal(size=(30, 20)).astype(np.float32)
    baseline = OnnxRuntimeBackend().convert(lambda: layer, {"input": inputs[:1]})
    quantization = asked("w8a8", "static", granularity=granularity, symmetric=symmetric)
    result = output(quantized(baseline, quantization, inputs), inputs)
    bias = layer.bias.detach().numpy()
    np.testing.assert_allclose(result, np.tile(bias, (30, 1)), atol=np.ptp(bias) / 100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(value):
    def change(weight):
        weight[0, 0] = value

    model = strange(change)
    baseline = OnnxRuntimeBackend().convert(lambda: model, {"input": IMAGES[:1]})
    for quantization in (asked("w8"), asked("w8a8", "dynamic"), asked("w8a8", "static")):
        with pytest.raises(NonFiniteError, match="weights are NaN or"):
            quantized(baseline, quantization)
