"""Every scheme option of the tflite backend, on the trained digits models and nets of its own."""

import functools
import itertools
import re

import numpy as np
import pytest

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Artifact, Bits, Calibration, Quantization, Ref, Scheme
from qb_cluster.errors import (
    DataError,
    NonFiniteError,
    PlugInError,
    UnsupportedError,
)
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_litert.graph import operations, read_model
from qb_litert.quiet import quiet
from qb_tflite import TFLiteBackend

pytestmark = pytest.mark.frameworks

BACKEND = TFLiteBackend()
RECKLESS = TFLiteBackend(allow_known_broken=True)
NETS = ("cnn", "mlp")
OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")
STAYS_FLOAT = "known to leave the weights float"
SCALAR = np.ones((1, 3), np.float32)


def sqnr_db(exact, rough):
    exact = exact.astype(np.float64)
    noise = np.sum((exact - rough) ** 2)
    return np.inf if noise == 0 else 10 * np.log10(np.sum(exact**2) / noise)


def ask(scheme, bits, calibration=None):
    return Quantization(scheme, Bits.parse(bits), "native", calibration)


def run(artifact, inputs, backend=BACKEND):
    return next(iter(backend.open(artifact, never_loaded, threads=1)({"input": inputs}).values()))


def never_loaded():
    raise AssertionError("the model was loaded, though the artifact is enough")


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset(Ref("digits", "digits"))
    return {
        "calibration": dataset.calibration_sample(Calibration())["input"],
        "test": dataset.inputs["input"][:150],
    }


@pytest.fixture(scope="module")
def nets():
    return {name: plugins.make("model", Ref(name, f"digits-{name}")) for name in NETS}


@pytest.fixture(scope="module")
def baselines(nets, digits):
    example = {"input": digits["test"][:1]}
    return {name: BACKEND.convert(lambda net=net: net, example) for name, net in nets.items()}


@pytest.fixture(scope="module")
def exact(baselines, digits):
    return {name: run(artifact, digits["test"]) for name, artifact in baselines.items()}


@pytest.fixture(scope="module")
def quantize(nets, baselines, digits):
    def quantized(net, scheme, bits, how=None, *, backend=BACKEND, calibration=None):
        quantization = ask(scheme, bits, how)
        assert backend.support(quantization).supported
        if scheme.activations == "static" and calibration is None:
            calibration = {"input": digits["calibration"]}
        model = (lambda: nets[net]) if scheme.layers else never_loaded
        return backend.quantize(model, baselines[net], quantization, calibration)

    return quantized


def grid(activations):
    """Give every combination of options that is a scheme at all."""
    for (granularity, group), symmetric, narrow, weight_range in itertools.product(
        [("per_channel", None), ("per_tensor", None), ("per_group", 32), ("per_group", 48)],
        (True, False),
        (True, False),
        ("minmax", "mse"),
    ):
        yield Scheme(
            "any",
            activations,
            granularity=granularity,
            group_size=group,
            symmetric=symmetric,
            narrow_range=narrow,
            weight_range=weight_range,
        )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("activations", "widths", "native"),
    [("none", (None,), 76), ("dynamic", (8,), 18), ("static", (8, 16), 24)],
)
def test_every_native_entry_of_the_grid_runs_and_every_other_has_a_reason(
    net, activations, widths, native, quantize, exact, digits
):
    tried = 0
    for scheme, weight, activation in itertools.product(
        grid(activations), (2, 3, 4, 8, 16), widths
    ):
        bits = str(Bits(weight, activation))
        support = BACKEND.support(ask(scheme, bits))
        if not support.supported:
            assert "available" in support.reason
            continue
        tried += 1
        artifact = quantize(net, scheme, bits)
        assert (artifact.facts.quantized_parameters == 0) == (STAYS_FLOAT in support.reason)
        if artifact.facts.quantized_parameters:
            least = {4: 17, 8: 35}[weight]
            db = sqnr_db(exact[net][:40], run(artifact, digits["test"][:40]))
            assert least < db < 80, (scheme, bits)
    assert tried == native


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bits", ["w8a8", "w8a16", "w4a8", "w4a16"])
def test_every_observer_gives_a_model_that_runs(net, bits, quantize, exact, digits):
    static = Scheme("static", "static")
    db = {
        observer: sqnr_db(
            exact[net],
            run(quantize(net, static, bits, Calibration(observer=observer)), digits["test"]),
        )
        for observer in OBSERVERS
    }
    floor = 20 if bits.startswith("w4") else 33
    assert all(value > floor for name, value in db.items() if name != "moving_average")
    assert db["moving_average"] < db["minmax"] - 5
    if bits.startswith("w8"):  # with 65,536 levels no clip has a smaller error than none
        assert len(set(db.values())) == (5 if bits == "w8a8" else 4)


@pytest.mark.parametrize(("bits", "widths"), [("w8a8", 8), ("w8a16", 16)])
def test_symmetric_activations_have_no_zero_point(bits, widths, quantize):
    from ai_edge_litert.schema_py_generated import TensorType

    kind = {8: TensorType.INT8, 16: TensorType.INT16}[widths]
    for symmetric in (True, False):
        scheme = Scheme("static", "static", symmetric_activations=symmetric)
        graph = read_model(quantize("cnn", scheme, bits).data).subgraphs[0]
        zero_points = [
            tensor.quantization.zeroPoint[0]
            for tensor in graph.tensors
            if tensor.type == kind and len(tensor.quantization.scale) == 1
        ]
        assert any(zero_points) == (not symmetric and widths == 8)


@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize(
    ("bits", "options"),
    [
        ("w8", {}),
        ("w4", {}),
        ("w8", {"symmetric": False}),
        ("w4", {"symmetric": False}),
        ("w4", {"narrow_range": False}),
    ],
)
def test_weights_are_rounded_as_the_reference_arithmetic_rounds_them(
    bits, options, granularity, weight_range, nets, quantize, digits
):
    import copy

    import torch

    scheme = Scheme("weight_only", granularity=granularity, weight_range=weight_range, **options)
    net = copy.deepcopy(nets["mlp"])
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                rounded = quantize_dequantize_weights(parameter.numpy(), scheme, Bits.parse(bits))
                parameter.copy_(torch.tensor(rounded))
        expected = net(torch.tensor(digits["test"])).numpy()
    db = sqnr_db(expected, run(quantize("mlp", scheme, bits), digits["test"]))
    if "beyond the narrow range" in BACKEND.support(ask(scheme, bits)).reason:
        assert 20 < db < 60
    else:
        assert db > 60


def test_groups_round_as_the_reference_does_but_for_their_half_precision_scales(
    nets, quantize, exact, digits
):
    """A dynamic kernel, so its activations are rounded too: 8 bits beside 4."""
    groups = Scheme("dynamic", "dynamic", granularity="per_group", group_size=32)
    artifact = quantize("mlp", groups, "w4a8")
    weights = next(nets["mlp"].parameters()).detach().numpy()
    operation = next(operations(read_model(artifact.data)))
    assert operation.stored == "integer"
    assert operation.shape == weights.shape
    facts = artifact.facts
    scale_bytes = 2 * (64 * 128 + 128 * 64 + 64 * 10) // 32
    biases, halves = 128 + 64 + 10, (64 * 128 + 128 * 64 + 64 * 10) // 2
    assert facts.parameter_bytes == halves + scale_bytes + 4 * biases
    assert facts.quantized_parameters == facts.parameters - biases
    finer = sqnr_db(exact["mlp"], run(artifact, digits["test"]))
    coarse = quantize("mlp", Scheme("dynamic", "dynamic", granularity="per_tensor"), "w4a8")
    assert finer > sqnr_db(exact["mlp"], run(coarse, digits["test"])) + 3


def test_a_group_that_does_not_fit_a_layer_is_refused_by_the_layers_name(quantize):
    groups = Scheme("dynamic", "dynamic", granularity="per_group", group_size=128)
    with pytest.raises(UnsupportedError, match=r"Linear_\d.*rows of 64, no multiple of .* 128"):
        quantize("mlp", groups, "w4a8")
    but_for = Scheme(
        "dynamic",
        "dynamic",
        granularity="per_group",
        group_size=128,
        layers=(("[15]", "float"),),
    )
    assert quantize("mlp", but_for, "w4a8").facts.quantized_parameters == 64 * 128


@pytest.mark.parametrize("net", NETS)
def test_half_precision_halves_the_file_and_computes_in_float(
    net, quantize, exact, digits, baselines
):
    artifact = quantize(net, Scheme("fp16", number="fp16"), "w16a16")
    facts = artifact.facts
    assert 16 < facts.bits_per_weight < 16.5
    assert facts.quantized_parameters > 0.98 * facts.parameters
    assert (facts.integer_mac_share, facts.fallback_ops, facts.notes) == (0, (), ())
    assert len(artifact.data) < 0.6 * len(baselines[net].data)
    assert 65 < sqnr_db(exact[net], run(artifact, digits["test"])) < 100


@pytest.mark.parametrize(
    ("scheme", "bits", "reason"),
    [
        (Scheme("bf16", number="bf16"), "w16a16", "no kernels for bf16; available: fp16"),
        (Scheme("fp8", number="fp8_e4m3"), "w8", "no kernels for fp8_e4m3; available: fp16"),
        (Scheme("s", "static", symmetric=False), "w8a8", "available as weight_only w4 and w8"),
        (Scheme("d", "dynamic", symmetric=False), "w4a8", "symmetric weights only"),
        (Scheme("w", narrow_range=False), "w8", "full range is available for w4"),
        (
            Scheme("w", narrow_range=False, weight_range="signed_max"),
            "w4",
            "scales .* are positive; available: weight_range minmax and mse",
        ),
        (
            Scheme("d", "dynamic", symmetric_activations=True),
            "w8a8",
            "choose the activation range themselves; .* available with static",
        ),
        (
            Scheme("s", "static", granularity="per_group", group_size=32),
            "w4a8",
            "groups beside static activations; available",
        ),
        (
            Scheme("d", "dynamic", granularity="per_group", group_size=16),
            "w4a8",
            "no groups of 16; available: 32, 64, 128, 256",
        ),
        (
            Scheme("d", "dynamic", granularity="per_group", group_size=32),
            "w2a8",
            "refuses 2-bit weights in groups",
        ),
        (Scheme("d", "dynamic", layers=(("a*", "w3a8"),)), "w8a8", r"layers 'a\*': w3a8 has no"),
        (Scheme("s", "static", layers=(("a", "w8a4"),)), "w8a8", "layers 'a': .* no kernels"),
    ],
)
def test_what_cannot_be_done_says_what_can(scheme, bits, reason):
    support = BACKEND.support(ask(scheme, bits))
    assert not support.supported
    assert re.search(reason, support.reason)


def test_a_file_that_the_runtime_has_no_kernels_for_is_unsupported(baselines):
    from ai_edge_quantizer import Quantizer, recipe

    with quiet():
        quantizer = Quantizer(baselines["mlp"].data, recipe.dynamic_wi2b32_afp32())
        made = quantizer.quantize(enable_progress_report=False)
    artifact = Artifact(bytes(made.quantized_model), "tflite", baselines["mlp"].facts)
    with pytest.raises(UnsupportedError, match=r"cannot run this file \(RuntimeError: .*INT2"):
        BACKEND.open(artifact, never_loaded, threads=1)


# Mixed precision


def stored_bits(artifact):
    """Give the width of each operation's weights, in the order they run."""
    from ai_edge_litert.schema_py_generated import TensorType

    widths = {TensorType.INT4: 4, TensorType.INT8: 8, TensorType.FLOAT32: 32}
    model = read_model(artifact.data)
    types = {t.name.decode(): t.type for graph in model.subgraphs for t in graph.tensors}
    return [widths[types[product.weights]] for product in operations(model) if product.weights]


@pytest.mark.parametrize(
    ("net", "activations", "bits", "layers", "expected"),
    [
        ("cnn", "none", "w8", {"2": "w4", "8": "float"}, [8, 4, 8, 32]),
        ("cnn", "none", "w4", {"0": "w8"}, [8, 4, 4, 4]),
        ("cnn", "none", "w8", {"0": "w4"}, [32, 8, 8, 8]),  # there are no 4-bit depthwise ones
        ("cnn", "dynamic", "w4a8", {"[68]": "w8a8"}, [32, 4, 8, 8]),
        ("mlp", "dynamic", "w8a8", {"1": "float", "*": "w4a8"}, [32, 4, 4]),
        ("cnn", "static", "w8a8", {"8": "float", "6": "w4a8"}, [8, 8, 4, 32]),
        ("cnn", "static", "w8a8", {"6": "w8a16"}, [8, 8, 8, 8]),
    ],
)
def test_layers_get_the_bits_that_their_first_matching_pattern_says(
    net, activations, bits, layers, expected, quantize, exact, digits
):
    mixed = Scheme("mixed", activations, layers=tuple(layers.items()))
    artifact = quantize(net, mixed, bits)
    assert stored_bits(artifact) == expected
    assert sqnr_db(exact[net], run(artifact, digits["test"])) > 20


def test_a_layer_left_float_on_purpose_is_no_fallback(quantize):
    facts = quantize("cnn", Scheme("d", "dynamic", layers=(("2", "float"),)), "w8a8").facts
    assert facts.fallback_ops == ()
    assert facts.notes == ("1 of 4 weight tensors stay float",)
    both = Scheme("d", "dynamic", layers=(("2", "float"),))
    assert quantize("cnn", both, "w4a8").facts.fallback_ops == ("DEPTHWISE_CONV_2D",)


def test_mixed_bits_lie_between_the_two(quantize, exact, digits):
    def db(bits, layers=()):
        artifact = quantize("mlp", Scheme("w", layers=layers), bits)
        return sqnr_db(exact["mlp"], run(artifact, digits["test"]))

    assert db("w4") + 1 < db("w4", (("1", "w8"),)) < db("w8") - 1


def test_a_pattern_that_matches_nothing_tells_what_there_is(quantize):
    with pytest.raises(PlugInError, match=r"'head\*' under layers matches none of .*\(1, 3, 5\)"):
        quantize("mlp", Scheme("w", layers=(("head*", "float"),)), "w8")


@pytest.fixture(scope="module")
def blocks():
    """A net whose layers fuse, fold, nest and hide: with its examples and its baseline."""
    import torch
    from torch import nn

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 16)
            self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
            self.stem = nn.Sequential(nn.Conv1d(16, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.left = nn.ModuleList([nn.Linear(40, 40)])
            self.right = nn.ModuleList([nn.Linear(40, 40)])
            self.odd_one = nn.ModuleList([nn.Identity(), nn.Linear(40, 3)])

        def forward(self, tokens):
            x = self.embed(tokens)
            x = x + self.attend(x, x, x, need_weights=False)[0]
            x = self.up(self.stem(x.transpose(1, 2))[:, :, None]).flatten(2).sum(1)
            x = torch.cat([x, x], 1)
            return self.odd_one[1](torch.relu(self.left[0](x)) + torch.relu(self.right[0](x)))

    torch.manual_seed(0)
    net = Blocks().eval()
    tokens = np.random.default_rng(0).integers(0, 30, (30, 5))
    return net, tokens, BACKEND.convert(lambda: net, {"input": tokens[:1]})


@pytest.mark.parametrize(
    ("patterns", "kinds"),
    [
        (["embed"], ["EMBEDDING_LOOKUP"]),
        (["attend.*"], ["FULLY_CONNECTED", "FULLY_CONNECTED"]),
        (["stem.0"], ["CONV_2D"]),
        (["up"], ["TRANSPOSE_CONV"]),
        (["stem.*", "left.0", "right.0"], ["CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"]),
        (["odd_one.*"], ["FULLY_CONNECTED"]),
    ],
)
def test_patterns_find_fused_folded_and_nested_layers(patterns, kinds, blocks):
    net, tokens, baseline = blocks
    layers = tuple((pattern, "float") for pattern in patterns)
    quantization = ask(Scheme("w", layers=layers), "w8")
    artifact = BACKEND.quantize(lambda: net, baseline, quantization, None)
    products = operations(read_model(artifact.data))
    assert sorted(product.kind for product in products if product.stored == "float32") == kinds
    assert sqnr_db(run(baseline, tokens), run(artifact, tokens)) > 30


def test_layers_of_lists_that_the_file_no_longer_names_are_told_apart(blocks):
    net, _, baseline = blocks
    quantization = ask(Scheme("w", layers=(("left.*", "float"),)), "w8")
    artifact = BACKEND.quantize(lambda: net, baseline, quantization, None)
    [product] = [p for p in operations(read_model(artifact.data)) if p.stored == "float32"]
    np.testing.assert_array_equal(product.values, net.left[0].weight.detach().numpy())


# Facts


def test_multiply_accumulates_are_counted_from_the_shapes(baselines, blocks):
    def macs(artifact):
        return [(product.kind, product.macs) for product in operations(read_model(artifact.data))]

    assert macs(baselines["cnn"]) == [
        ("DEPTHWISE_CONV_2D", 8 * 8 * 9 * 16),
        ("CONV_2D", 8 * 8 * 9 * 16 * 32),
        ("FULLY_CONNECTED", 512 * 64),
        ("FULLY_CONNECTED", 64 * 10),
    ]
    counted = dict(macs(blocks[2]))
    assert counted["BATCH_MATMUL"] == 2 * 5 * 5 * 8
    assert counted["CONV_2D"] == 5 * 3 * 16 * 8
    assert counted["TRANSPOSE_CONV"] == 5 * 8 * 4 * 2 * 2
    assert counted["EMBEDDING_LOOKUP"] == 0


@pytest.mark.parametrize(
    ("activations", "bits", "integer", "fallback"),
    [
        ("none", "w8", 0, ()),
        ("dynamic", "w8a8", 337_536, ()),
        ("dynamic", "w4a8", 337_536 - 9_216, ("DEPTHWISE_CONV_2D",)),
        ("static", "w8a8", 337_536, ()),
        ("static", "w8a16", 337_536, ()),
        ("static", "w4a8", 337_536 - 9_216, ("DEPTHWISE_CONV_2D",)),
    ],
)
def test_integer_shares_say_which_kernels_multiply_integers(
    activations, bits, integer, fallback, quantize
):
    facts = quantize("cnn", Scheme("any", activations), bits).facts
    assert facts.integer_mac_share == pytest.approx(integer / 337_536)
    assert facts.integer_layer_mac_share == facts.integer_mac_share  # no attention
    assert facts.fallback_ops == fallback


def test_only_static_schemes_of_all_activations_multiply_two_of_them_in_integers(blocks):
    net, tokens, baseline = blocks
    products = [product.macs for product in operations(read_model(baseline.data))]
    of_activations = 2 * (2 * 5 * 5 * 8)
    shares = {}
    for activations, scope in (("dynamic", "inputs"), ("static", "layers"), ("static", "all")):
        quantization = ask(Scheme("any", activations, scope=scope), "w8a8")
        made = BACKEND.quantize(lambda: net, baseline, quantization, {"input": tokens})
        shares[scope] = made.facts.integer_mac_share
        assert made.facts.scope == scope
        assert made.facts.integer_layer_mac_share == 1
        assert made.facts.fallback_ops == ()
    assert shares["inputs"] == pytest.approx(1 - of_activations / sum(products))
    assert shares["layers"] == shares["inputs"]
    assert shares["all"] == 1
    assert baseline.facts.integer_mac_share == baseline.facts.integer_layer_mac_share == 0


def test_neither_a_layer_left_float_nor_attention_counts_among_products_that_are_covered(blocks):
    net, tokens, baseline = blocks
    of_activations = 2 * (2 * 5 * 5 * 8)
    left = 40 * 3
    total = sum(product.macs for product in operations(read_model(baseline.data)))
    quantization = ask(Scheme("any", "dynamic", layers=(("odd_one.1", "float"),)), "w8a8")
    facts = BACKEND.quantize(lambda: net, baseline, quantization, {"input": tokens}).facts
    assert facts.integer_mac_share == pytest.approx(1 - (of_activations + left) / total)
    assert facts.integer_layer_mac_share == 1


def test_parameters_are_weights_on_either_side_of_a_product():
    import torch
    from torch import nn

    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys = nn.Linear(64, 64)
            self.queries = nn.Parameter(torch.randn(1, 2, 3, 32))  # of two heads

        def forward(self, values):
            keys = self.keys(values).reshape(-1, 5, 2, 32).transpose(1, 2)
            scores = torch.matmul(self.queries, keys.transpose(2, 3))
            return torch.matmul(scores, keys)

    torch.manual_seed(0)
    net = Queries().eval()
    values = np.random.default_rng(0).normal(size=(1, 5, 64)).astype(np.float32)
    baseline = BACKEND.convert(lambda: net, {"input": values})
    dynamic = ask(Scheme("any", "dynamic"), "w8a8")
    facts = BACKEND.quantize(lambda: net, baseline, dynamic, None).facts
    keys, scores, mixed = 5 * 64 * 64, 3 * 5 * 64, 3 * 5 * 64
    assert facts.integer_mac_share == pytest.approx(keys / (keys + scores + mixed))
    assert facts.integer_layer_mac_share == pytest.approx(keys / (keys + scores))


# Models that come as files


def without_signature(data):
    from ai_edge_litert.tools import flatbuffer_utils

    model = read_model(data)
    model.signatureDefs = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


@pytest.mark.parametrize("strip", [False, True])
def test_a_float_file_is_the_baseline_as_it_is(strip, baselines, exact, digits, tmp_path):
    data = without_signature(baselines["cnn"].data) if strip else baselines["cnn"].data
    path = tmp_path / "net.tflite"
    path.write_bytes(data)
    baseline = BACKEND.convert(lambda: path, {"pixels": digits["test"][:1]})
    assert baseline.data == data
    assert baseline.facts == baselines["cnn"].facts
    np.testing.assert_array_equal(run(baseline, digits["test"]), exact["cnn"])
    static = ask(Scheme("static", "static"), "w8a8")
    made = BACKEND.quantize(lambda: path, baseline, static, {"pixels": digits["calibration"]})
    assert sqnr_db(exact["cnn"], run(made, digits["test"])) > 33


def test_the_layers_of_a_file_are_called_by_the_tensors_they_put_out(baselines, digits, tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(baselines["mlp"].data)
    baseline = BACKEND.convert(lambda: str(path), {"input": digits["test"][:1]})
    mixed = ask(Scheme("w", layers=(("*Linear_3*", "w4"), ("*output*", "float"))), "w8")
    made = BACKEND.quantize(lambda: str(path), baseline, mixed, None)
    assert stored_bits(made) == [8, 4, 32]
    wrong = ask(Scheme("w", layers=(("3", "w4"),)), "w8")
    with pytest.raises(PlugInError, match=r"'3' under layers matches none of .*output"):
        BACKEND.quantize(lambda: str(path), baseline, wrong, None)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (Scheme("w"), "w8"),
        (Scheme("d", "dynamic", granularity="per_group", group_size=32), "w4a8"),
        (Scheme("f", number="fp16"), "w16a16"),
    ],
)
def test_a_quantized_file_is_no_float_baseline(scheme, bits, quantize, digits, tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(quantize("mlp", scheme, bits).data)
    with pytest.raises(UnsupportedError, match="quantized already"):
        BACKEND.convert(lambda: path, {"input": digits["test"][:1]})


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"PK\x03\x04" + data,
        lambda data: b"\x80\x04\x95cos\nsystem\n" * 40,
        lambda data: data[:4] + b"TFL3" + bytes(range(256)) * 9,
        lambda data: data[:200] + bytes(400) + data[600:],
    ],
)
def test_a_damaged_or_foreign_file_ends_the_cell_and_not_the_process(
    damage, baselines, digits, tmp_path
):
    path = tmp_path / "net.tflite"
    path.write_bytes(damage(baselines["mlp"].data))
    with pytest.raises(PlugInError, match=r"net\.tflite cannot be run as a float model"):
        BACKEND.convert(lambda: path, {"input": digits["test"][:1]})


def test_a_missing_file_and_inputs_that_do_not_fit_are_told(baselines, digits, tmp_path):
    path = tmp_path / "net.tflite"
    with pytest.raises(PlugInError, match="No such file"):
        BACKEND.convert(lambda: path, {"input": digits["test"][:1]})
    path.write_bytes(baselines["mlp"].data)
    with pytest.raises(PlugInError, match="no input args_0; it has image, mask"):
        BACKEND.convert(lambda: path, {"image": digits["test"][:1], "mask": SCALAR})
    with pytest.raises(PlugInError, match="Dimension mismatch"):
        BACKEND.convert(lambda: path, {"input": SCALAR})


# Known to be broken


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [("w2a8", "per_channel"), ("w2a8", "per_tensor"), ("w8a8", "per_tensor")],
)
def test_what_is_known_to_be_broken_is_still_broken(bits, granularity, quantize, exact, digits):
    """The day this fails LiteRT has been mended: take the guard away."""
    scheme = Scheme("dynamic", "dynamic", granularity=granularity)
    assert "garbage" in RECKLESS.support(ask(scheme, bits)).reason
    artifact = quantize("cnn", scheme, bits, backend=RECKLESS)
    assert "float" not in str(artifact.facts.notes) or bits == "w2a8"
    with np.errstate(all="ignore"):  # some of it is infinite
        db = sqnr_db(exact["cnn"], run(artifact, digits["test"]))
    assert not db > 5


def test_guards_are_taken_away_by_name_only():
    for bits in ("w2a8", "w8a8"):
        scheme = Scheme("dynamic", "dynamic", granularity="per_tensor")
        careful = BACKEND.support(ask(scheme, bits))
        assert careful.supported == (bits == "w8a8")
        assert "garbage" in careful.reason
        assert (
            plugins.make("backend", Ref("tflite", "tflite", '{"allow_known_broken":true}'))
            .support(ask(scheme, bits))
            .supported
        )


# Bad input


def converted(layer, example):
    return BACKEND.convert(layer.eval, {"input": example})


@pytest.fixture(scope="module")
def constant():
    """A layer of one channel whose weights are all the same."""
    import torch

    inputs = np.random.default_rng(0).random((20, 8), np.float32)

    @functools.cache
    def make(fill):
        layer = torch.nn.Linear(8, 1, bias=False)
        torch.nn.init.constant_(layer.weight, fill)
        return inputs, converted(layer, inputs[:1])

    return make


@pytest.mark.parametrize("fill", [0.0, 0.5, 1e-42, 1e-30, 1e30])
@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (Scheme("w"), "w8"),
        (Scheme("w", weight_range="mse"), "w4"),
        (Scheme("w", symmetric=False), "w8"),
        (Scheme("d", "dynamic"), "w8a8"),
        (Scheme("s", "static"), "w8a8"),
        (Scheme("s", "static", granularity="per_tensor"), "w8a16"),
    ],
)
def test_constant_tiny_and_huge_weights_give_finite_and_close_numbers(fill, scheme, bits, constant):
    inputs, baseline = constant(fill)
    calibration = {"input": inputs} if scheme.activations == "static" else None
    artifact = BACKEND.quantize(never_loaded, baseline, ask(scheme, bits), calibration)
    outputs, float_outputs = run(artifact, inputs), run(baseline, inputs)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(outputs, float_outputs, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_module_whose_weights_are_no_numbers_is_refused_by_name(bad):
    import torch

    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 1] = bad
    with pytest.raises(NonFiniteError, match="weights 'weight' are NaN or infinite"):
        converted(layer, SCALAR)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activations", ["none", "dynamic", "static"])
def test_a_file_whose_weights_are_no_numbers_is_refused_by_name(bad, activations, baselines):
    from ai_edge_litert.tools import flatbuffer_utils

    model = read_model(baselines["mlp"].data)
    weights = next(t for t in model.subgraphs[0].tensors if t.name.endswith(b"Linear_3;1"))
    values = np.frombuffer(model.buffers[weights.buffer].data, np.float32).copy()
    values[7] = bad
    model.buffers[weights.buffer].data = values.view(np.uint8)
    broken = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    baseline = Artifact(broken, "tflite", baselines["mlp"].facts)
    quantization = ask(Scheme("any", activations), "w8" if activations == "none" else "w8a8")
    with pytest.raises(NonFiniteError, match=r"weights '.*Linear_3;1' are NaN or infinite"):
        BACKEND.quantize(never_loaded, baseline, quantization, None)


@pytest.mark.parametrize("calibration", [None, {}, {"input": np.zeros((0, 1, 8, 8), np.float32)}])
def test_an_empty_calibration_set_is_told(calibration, baselines):
    static = ask(Scheme("static", "static"), "w8a8")
    with pytest.raises(DataError, match="need calibration examples, and there are none"):
        BACKEND.quantize(never_loaded, baselines["mlp"], static, calibration)


def test_a_calibration_example_that_is_nan_is_told(baselines, digits):
    images = digits["calibration"][:4].copy()
    images[2, 0, 3, 3] = np.nan
    static = ask(Scheme("static", "static"), "w8a8")
    with pytest.raises(NonFiniteError, match="calibration example 2 makes"):
        BACKEND.quantize(never_loaded, baselines["mlp"], static, {"input": images})


def test_an_outlier_in_calibration_ruins_the_true_range_and_not_the_percentile(
    quantize, exact, digits
):
    images = digits["calibration"].copy()
    images[5, 0, 4, 4] = 1e6
    static = Scheme("static", "static")

    def db(how):
        made = quantize("mlp", static, "w8a8", how, calibration={"input": images})
        return sqnr_db(exact["mlp"], run(made, digits["test"]))

    assert db(Calibration()) < 3
    assert db(Calibration(observer="percentile", percentile=98)) > 15


def test_bits_of_another_form_than_the_scheme_have_their_reason():
    support = BACKEND.support(ask(Scheme("static", "static"), "w8"))
    assert not support.supported
    assert "no kernels for w8 with activations 'static'" in support.reason
