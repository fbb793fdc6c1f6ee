"""PyTorch's native breadth: what each kernel stores, computes and reports."""

import io
import itertools

import numpy as np
import pytest
import torch
from conv_embed_net import ConvEmbedNet, images_and_ids
from torch import nn

from qb_cluster.contracts import Artifact, Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_onnxruntime.runtime import int8_products_saturate
from qb_pytorch import PyTorchBackend, layers, nibbles

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()
ACTIVATION_BITS = 7 if int8_products_saturate() else 8  # of static kernels
OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return ConvEmbedNet(128).eval()


@pytest.fixture(scope="module")
def inputs():
    return images_and_ids()


def convert(net, inputs):
    return BACKEND.convert(lambda: net, {name: array[:1] for name, array in inputs.items()})


def quantize(net, inputs, scheme, bits, execution="native", calibration=None):
    static = scheme.activations == "static"
    asked = Quantization(scheme, Bits.parse(bits), execution, calibration)
    assert BACKEND.support(asked).supported
    baseline = convert(net, inputs)
    return BACKEND.quantize(lambda: net, baseline, asked, inputs if static else None)


def run(net, inputs, artifact):
    (output,) = BACKEND.open(artifact, lambda: net, 1)(inputs).values()
    return output


def sqnr_db(reference, values):
    noise = np.sum((reference - values) ** 2, dtype=np.float64)
    return 10 * np.log10(np.sum(reference**2, dtype=np.float64) / noise) if noise else np.inf


WEIGHT_OPTIONS = [
    {},
    {"narrow_range": False},
    {"symmetric": False},
    {"weight_range": "mse"},
    {"weight_range": "signed_max", "narrow_range": False},
    {
        "weight_range": "signed_max",
        "narrow_range": False,
        "granularity": "per_group",
        "group_size": 32,
    },
    {"granularity": "per_tensor"},
    {"granularity": "per_group", "group_size": 16},
    {"granularity": "per_group", "group_size": 64, "symmetric": False},
]


@pytest.mark.parametrize(
    ("options", "bits"), list(itertools.product(WEIGHT_OPTIONS, ["w2", "w4", "w7", "w8"]))
)
def test_weight_only_kernels_compute_what_the_reference_arithmetic_says(net, inputs, options, bits):
    scheme = Scheme("weight_only", **options)
    artifact = quantize(net, inputs, scheme, bits)
    native = run(net, inputs, artifact)
    plain = {nn.Parameter, torch.Tensor}
    kept = {name for name, tensor in stored(artifact)["state"].items() if type(tensor) in plain}
    rounded = ConvEmbedNet(128).eval()
    rounded.load_state_dict(net.state_dict())
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if name not in kept:
                exact = weight.numpy().copy()
                weight.copy_(
                    torch.from_numpy(quantize_dequantize_weights(exact, scheme, Bits.parse(bits)))
                )
        expected = rounded(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    assert sqnr_db(expected.numpy(), native) > 100
    assert artifact.facts.integer_mac_share == 0  # it multiplies in float


def stored(artifact):
    import torchao.quantization  # noqa: F401 makes its tensors readable

    return torch.load(io.BytesIO(artifact.data), weights_only=True)


def test_four_bit_weights_of_linear_layers_are_stored_two_to_a_byte(net, inputs):
    artifact = quantize(net, inputs, Scheme("weight_only"), "w4")
    content = stored(artifact)
    pairs = {name: pair.shape for name, pair in content["pairs"].items()}
    assert pairs == {
        "wide.weight": (128, 8),
        "mix.weight": (32, 64),
        "head.weight": (5, 16),
    }
    for name in pairs:  # the tensor around them holds one zero in place of all
        assert content["state"][name].qdata.untyped_storage().nbytes() == 1
    assert artifact.facts.notes == ("weights of 4 bits are stored in 8 bits each",)


def test_a_net_of_linear_layers_has_little_more_than_four_bits_a_weight_and_so_has_its_file():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 256, bias=False), nn.Linear(256, 256, bias=False)).eval()
    inputs = {"input": np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)}
    artifact = quantize(net, inputs, Scheme("weight_only"), "w4")
    weights, scales = 512 * 256 + 256 * 256, 256 + 256
    assert artifact.facts.bits_per_weight == pytest.approx(4 + 32 * scales / weights)
    assert artifact.facts.notes == ()
    assert weights / 2 < len(artifact.data) < weights / 2 + 4 * scales + 8_000


def test_an_odd_number_of_inputs_takes_bytes():
    net = nn.Linear(7, 4).eval()
    inputs = {"input": np.ones((2, 7), np.float32)}
    artifact = quantize(net, inputs, Scheme("weight_only"), "w4")
    assert stored(artifact)["pairs"] == {}
    assert artifact.facts.notes == ("weights of 4 bits are stored in 8 bits each",)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(64, 64, bias=False)
        self.two = nn.Linear(64, 64, bias=False)
        self.two.weight = self.one.weight

    def forward(self, input):  # noqa: A002 - the contract's name
        return self.two(torch.relu(self.one(input)))


def test_tied_four_bit_weights_are_stored_once_and_compute_as_the_simulation_does():
    torch.manual_seed(0)
    net = Tied().eval()
    inputs = {"input": np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)}
    artifact = quantize(net, inputs, Scheme("weight_only"), "w4")
    pairs = stored(artifact)["pairs"]
    assert {name: pair.nbytes for name, pair in pairs.items()} == {
        "one.weight": 2_048,
        "two.weight": 2_048,
    }
    assert len({pair.data_ptr() for pair in pairs.values()}) == 1
    assert artifact.facts.bits_per_weight == 4 + 32 / 64
    simulated = quantize(net, inputs, Scheme("weight_only"), "w4", "simulated")
    assert sqnr_db(run(net, inputs, simulated), run(net, inputs, artifact)) > 100


def test_integers_of_four_bits_survive_being_packed():
    integers = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 5)
    pairs = nibbles.pack(integers)
    assert (pairs.dtype, pairs.shape) == (torch.uint8, (3, 40))
    torch.testing.assert_close(nibbles.unpack(pairs), integers, rtol=0, atol=0)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_dynamic_layers_compute_in_integers_and_the_facts_say_which(net, inputs, bits):
    artifact = quantize(net, inputs, Scheme("dynamic", "dynamic"), bits)
    linear = 16 * 128 + 128 * 32 + 32 * 5
    conv = 6 * 6 * 16 * 3 * 9
    assert artifact.facts.integer_mac_share == pytest.approx(linear / (linear + conv))
    assert artifact.facts.integer_layer_mac_share == artifact.facts.integer_mac_share
    assert artifact.facts.fallback_ops == ("Conv2d",)
    native = run(net, inputs, artifact)
    exact = run(net, inputs, convert(net, inputs))
    assert sqnr_db(exact, native) > (35 if bits == "w8a8" else 17)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_static_kernels_use_every_observer_as_the_simulation_does(net, inputs, observer):
    # The embedding would be rounded in the simulation alone.
    asked = (Scheme("static", "static", layers=(("embed", "float"),)), "w8a8")
    calibration = Calibration(observer=observer, percentile=99)
    exact = run(net, inputs, convert(net, inputs))
    native = run(net, inputs, quantize(net, inputs, *asked, "native", calibration))
    alike = quantize(net, inputs, asked[0], f"w8a{ACTIVATION_BITS}", "simulated", calibration)
    simulated = run(net, inputs, alike)
    apart = sqnr_db(exact, native) - sqnr_db(exact, simulated)
    if ACTIVATION_BITS == 7 and observer in {"moving_average", "percentile"}:
        # Seven bits in a byte: what these clip is kept, up to the double of the range.
        assert 0 <= apart < 10  # dB
        return
    assert sqnr_db(simulated, native) > sqnr_db(exact, native) + 3
    assert abs(apart) < 1


def test_static_layers_take_bits_of_their_own(net, inputs):
    def artifact(layers):
        return quantize(net, inputs, Scheme("static", "static", layers=layers), "w8a8")

    everything = artifact(())
    assert everything.facts.integer_mac_share == everything.facts.integer_layer_mac_share == 1
    assert everything.facts.fallback_ops == ()
    fewer = artifact((("wide", "w3a8"), ("conv", "float"), ("*", "w8a8")))
    linear = 16 * 128 + 128 * 32 + 32 * 5
    assert fewer.facts.integer_mac_share == pytest.approx(linear / (linear + 6 * 6 * 16 * 3 * 9))
    assert fewer.facts.fallback_ops == ()  # the convolution is float because it should be
    assert "weights of 3 bits are stored in 8 bits each" in fewer.facts.notes
    exact = run(net, inputs, convert(net, inputs))
    native = run(net, inputs, fewer)
    simulated = run(
        net,
        inputs,
        quantize(
            net,
            inputs,
            Scheme(
                "static",
                "static",
                layers=(("wide", "w3a8"), ("conv", "float"), ("embed", "float")),
            ),
            "w8a8",
            "simulated",
        ),
    )
    assert sqnr_db(simulated, native) > sqnr_db(exact, native) + 12
    assert sqnr_db(exact, native) < 25  # what 3 bits leave


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric_activations": True},
        {"weight_range": "mse"},
        {"narrow_range": False, "granularity": "per_tensor"},
        {"weight_range": "signed_max", "narrow_range": False},
    ],
    ids=str,
)
def test_static_options_are_those_of_the_simulation(net, inputs, options):
    scheme = Scheme("static", "static", layers=(("embed", "float"),), **options)
    native = run(net, inputs, quantize(net, inputs, scheme, "w4a8", "native"))
    alike = quantize(net, inputs, scheme, f"w4a{ACTIVATION_BITS}", "simulated")
    assert sqnr_db(run(net, inputs, alike), native) > (38 if ACTIVATION_BITS == 8 else 32)


def test_weight_only_layers_take_bits_of_their_own(net, inputs):
    layers = (("head", "float"), ("mix", "w8"))
    artifact = quantize(net, inputs, Scheme("weight_only", layers=layers), "w2")
    content = stored(artifact)
    state = nibbles.whole(content["state"], content["pairs"])
    assert torch.equal(state["head.weight"], net.head.weight)
    assert state["mix.weight"].qdata.unique().numel() > 100
    assert state["wide.weight"].qdata.unique().numel() == 3
    assert artifact.facts.fallback_ops == ()


@pytest.mark.parametrize("execution", ["native", "simulated"])
@pytest.mark.parametrize("scheme", ["none", "dynamic", "static"])
def test_a_pattern_that_matches_no_layer_is_named_beside_layers_there_are(
    net, inputs, scheme, execution
):
    bits = "w8" if scheme == "none" else "w8a8"
    wrong = Scheme("mine", scheme, layers=(("haed.*", bits),))
    with pytest.raises(PlugInError, match=r"'haed\.\*' .* none of the 5 .*conv, wide"):
        quantize(net, inputs, wrong, bits, execution)


@pytest.mark.parametrize(("number", "fraction_bits"), [("fp16", 10), ("bf16", 7)])
def test_sixteen_bit_floats_take_sixteen_bits_and_lose_what_they_must(
    net, inputs, number, fraction_bits
):
    scheme = Scheme(number, number=number)
    artifact = quantize(net, inputs, scheme, "w16a16")
    assert artifact.facts.bits_per_weight == 16
    assert artifact.facts.quantized_parameters == artifact.facts.parameters
    exact = run(net, inputs, convert(net, inputs))
    native = run(net, inputs, artifact)
    assert native.dtype == np.float32
    # Half a unit in the last place leaves 6.02 dB a bit of fraction and about 12 more.
    found = sqnr_db(exact, native)
    assert abs(found - (6.02 * fraction_bits + 10)) < 8
    simulated = run(net, inputs, quantize(net, inputs, scheme, "w16a16", "simulated"))
    assert abs(sqnr_db(exact, simulated) - found) < 8


@pytest.mark.parametrize(("number", "least"), [("fp8_e4m3", 28), ("fp8_e5m2", 22)])
def test_fp8_weights_take_a_byte_in_linear_layers(net, inputs, number, least):
    artifact = quantize(net, inputs, Scheme("fp8", number=number), "w8")
    linear = sum(layer.weight.numel() for layer in (net.wide, net.mix, net.head))
    assert artifact.facts.quantized_parameters == linear
    assert artifact.facts.fallback_ops == ("Conv2d",)
    exact = run(net, inputs, convert(net, inputs))
    assert sqnr_db(exact, run(net, inputs, artifact)) > least


def test_a_model_that_insists_on_float32_is_unsupported_in_sixteen_bits():
    class Insists(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, values):
            return self.linear(values + torch.zeros(4))

    inputs = {"input": np.ones((3, 4), np.float32)}
    with pytest.raises(UnsupportedError, match=r"does not run in float16 .* dtype"):
        quantize(Insists().eval(), inputs, Scheme("fp16", number="fp16"), "w16a16")


class Attention(nn.Module):
    """Two products of activations between two projections."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, values):
        hidden = self.project(values)
        return hidden @ hidden.transpose(1, 2) @ hidden


class FusedAttention(Attention):
    """The same in one operation of torch."""

    def forward(self, values):
        hidden = self.project(values)[:, None]
        return nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)[:, 0]


@pytest.mark.parametrize("kind", [Attention, FusedAttention])
def test_products_of_activations_count_but_never_run_in_integers(kind):
    torch.manual_seed(0)
    inputs = {"input": np.random.default_rng(0).normal(size=(4, 8, 16)).astype(np.float32)}
    for activations in ("dynamic", "static"):
        facts = quantize(kind().eval(), inputs, Scheme("mine", activations), "w8a8").facts
        layer, products = 8 * 16 * 16, 2 * 8 * 8 * 16
        assert facts.integer_mac_share == pytest.approx(layer / (layer + products))
        assert facts.integer_layer_mac_share == 1


class Headed(nn.Module):
    """Attention, and a layer behind it."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.head = nn.Linear(16, 4)

    def forward(self, values):
        return self.head(self.attention(values))


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_a_layer_left_float_is_not_among_the_products_that_are_covered(activations):
    torch.manual_seed(0)
    inputs = {"input": np.random.default_rng(0).normal(size=(4, 8, 16)).astype(np.float32)}
    scheme = Scheme("mine", activations, layers=(("head", "float"),))
    facts = quantize(Headed().eval(), inputs, scheme, "w8a8").facts
    project, head, products = 8 * 16 * 16, 8 * 16 * 4, 2 * 8 * 8 * 16
    assert facts.integer_mac_share == pytest.approx(project / (project + head + products))
    assert facts.integer_layer_mac_share == 1


class Functional(nn.Module):
    """Weights that no module multiplies by: sliced, normalized, in front, of a buffer."""

    def __init__(self):
        super().__init__()
        self.packed = nn.Parameter(torch.randn(3, 16, 16))
        self.queries = nn.Parameter(torch.randn(5, 16))
        self.register_buffer("mix", torch.randn(16, 4))

    def forward(self, values):
        hidden = nn.functional.linear(values, self.packed[1])
        hidden = hidden @ nn.functional.normalize(self.packed[2])
        kept = torch.zeros_like(hidden)
        kept[:, 2:] = hidden[:, 2:]  # depends on the input from here on
        scores = self.queries @ kept.transpose(1, 2)
        return scores @ hidden @ self.mix


def test_weights_are_followed_through_functions_and_activations_through_memory():
    torch.manual_seed(0)
    macs = layers.count_macs(Functional().eval(), {"input": torch.randn(1, 8, 16)})
    weighted = 2 * 8 * 16 * 16 + 5 * 16 * 8 + 5 * 16 * 4
    assert (macs.total, macs.weighted) == (weighted + 5 * 8 * 16, weighted)


def test_the_projections_of_torchs_own_attention_have_weights():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, values):
            return self.attend(values, values, values, need_weights=False)[0]

    macs = layers.count_macs(Attend().eval(), {"input": torch.randn(1, 8, 16)})
    projections, products = 4 * 8 * 16 * 16, 2 * 8 * 8 * 16
    assert (macs.total, macs.weighted) == (projections + products, projections)


def test_a_baseline_from_before_weights_were_counted_leaves_the_share_unknown(net, inputs):
    baseline = convert(net, inputs)
    content = torch.load(io.BytesIO(baseline.data), weights_only=True)
    del content["weighted_macs"]
    file = io.BytesIO()
    torch.save(content, file)
    asked = Quantization(Scheme("dynamic", "dynamic"), Bits.parse("w8a8"), "native")
    older = Artifact(file.getvalue(), baseline.format, baseline.facts)
    facts = BACKEND.quantize(lambda: net, older, asked, None).facts
    assert facts.integer_mac_share > 0
    assert facts.integer_layer_mac_share is None


@pytest.mark.parametrize(
    ("scheme", "bits", "share"), [("none", "w4", 0), ("dynamic", "w8a8", 1), ("static", "w8a8", 1)]
)
@pytest.mark.parametrize("execution", ["native", "simulated"])
def test_a_model_that_is_one_layer_is_quantized(scheme, bits, share, execution):
    torch.manual_seed(0)
    net = nn.Linear(32, 16).eval()
    inputs = {"input": np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)}
    artifact = quantize(net, inputs, Scheme("mine", scheme), bits, execution)
    assert artifact.facts.integer_mac_share == (share if execution == "native" else 0)
    assert artifact.facts.integer_layer_mac_share == artifact.facts.integer_mac_share
    assert sqnr_db(run(net, inputs, convert(net, inputs)), run(net, inputs, artifact)) > 17


def test_a_cpu_without_vnni_gets_seven_bits_and_is_told(net, inputs, monkeypatch):
    monkeypatch.setattr("torchao.utils.should_reduce_range", lambda _: True)
    artifact = quantize(net, inputs, Scheme("dynamic", "dynamic"), "w8a8")
    assert "7-bit weights and activations: this CPU has no VNNI" in artifact.facts.notes
    assert artifact.facts.effective_bits == Bits(7, 7)
    assert stored(artifact)["state"]["mix.weight"].qdata.abs().max() == 63
    exact = run(net, inputs, convert(net, inputs))
    assert 25 < sqnr_db(exact, run(net, inputs, artifact)) < 45


class Positions(nn.Module):
    """Reads rows of a table without looking them up."""

    def __init__(self):
        super().__init__()
        self.position, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)

    def forward(self, values):
        return self.head(values + self.position.weight[: values.shape[1]])


def test_a_weight_that_is_read_without_its_layer_is_unsupported_or_left_float():
    torch.manual_seed(0)
    net = Positions().eval()
    inputs = {"values": np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)}
    with pytest.raises(UnsupportedError, match=r"what this model does with a weight \(NotImpl"):
        quantize(net, inputs, Scheme("weight_only"), "w8")
    apart = Scheme("weight_only", layers=(("position", "float"),))
    artifact = quantize(net, inputs, apart, "w8")
    assert artifact.facts.coverage == {"linear": (32 * 64, 32 * 64)}
