"""What the tflite backend simulates, against the pytorch backend's simulation."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref, Scheme
from qb_cluster.errors import DataError, NonFiniteError, PlugInError
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_litert.graph import operations, operator_kinds, read_model
from qb_pytorch import PyTorchBackend
from qb_tflite import TFLiteBackend

pytestmark = pytest.mark.frameworks

BACKEND, REFERENCE = TFLiteBackend(), PyTorchBackend()
BOTH = (BACKEND, REFERENCE)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        normed = self.norm(input)
        return self.head((input + self.attention(normed, normed, normed)[0]).mean(1))


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 12), nn.Linear(12, 5)
        self.steps = nn.LSTM(12, 12, batch_first=True)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(self.steps(self.embed(input))[0][:, -1])


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(2, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 3, 1, groups=1)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.out(torch.relu(self.up(torch.relu(self.norm(self.down(input))))))


class Volume(nn.Module):
    """Tensors of five axes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 1)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.second(torch.relu(self.first(input)))


SHAPES = {Attention: (6, 16), Upsampling: (2, 8, 8), Volume: (1, 4, 5, 6)}


@functools.cache
def given(net):
    """Give a model, and inputs of it."""
    if isinstance(net, str):
        dataset = load_dataset(Ref("digits", "digits"))
        return plugins.make("model", Ref(net, f"digits-{net}")), {
            "input": dataset.calibration_sample(Calibration())["input"][:100]
        }
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if net is Steps:
        return net().eval(), {"input": rng.integers(0, 20, (40, 7))}
    values = rng.standard_normal((40, *SHAPES[net])).astype(np.float32)
    return net().eval(), {"input": values}


@functools.cache
def baseline(backend, net):
    model, inputs = given(net)
    return backend.convert(lambda: model, {"input": inputs["input"][:1]})


def ask(scheme, bits):
    how = Calibration() if scheme.activations == "static" else None
    return Quantization(scheme, Bits.parse(bits), "simulated", how)


def simulated(backend, net, scheme, bits):
    model, inputs = given(net)
    asked = ask(scheme, bits)
    assert backend.support(asked).supported
    calibration = inputs if asked.calibration else None
    return backend.quantize(lambda: model, baseline(backend, net), asked, calibration)


def run(backend, artifact, net):
    model, inputs = given(net)
    return next(iter(backend.open(artifact, lambda: model, 1)(inputs).values()))


def sqnr_db(exact, rough):
    exact = exact.astype(np.float64)
    return 10 * np.log10(np.sum(exact**2) / max(np.sum((exact - rough) ** 2), 1e-300))


def compare(net, scheme, bits):
    """Give how far both simulations are from float, and how far from each other, in dB."""
    exact = run(REFERENCE, baseline(REFERENCE, net), net)
    ours, theirs = (run(one, simulated(one, net, scheme, bits), net) for one in BOTH)
    return sqnr_db(exact, ours), sqnr_db(exact, theirs), sqnr_db(theirs, ours)


WEIGHTS = [
    (Scheme("w"), "w3"),
    (Scheme("w", granularity="per_tensor"), "w4"),
    (Scheme("w", granularity="per_group", group_size=5), "w4"),
    (
        Scheme(
            "w",
            granularity="per_group",
            group_size=8,
            narrow_range=False,
            weight_range="signed_max",
        ),
        "w2",
    ),
    (Scheme("w", symmetric=False, weight_range="mse"), "w5"),
    (Scheme("f", number="fp8_e4m3"), "w8"),
    (Scheme("own", weight_quantizer=lambda weights, bits: np.round(weights * bits) / bits), "w7"),
]


@pytest.mark.parametrize("net", ["cnn", "mlp", Steps, Volume])
@pytest.mark.parametrize(("scheme", "bits"), WEIGHTS)
def test_weights_are_rounded_as_on_pytorch(net, scheme, bits):
    ours, theirs, apart = compare(net, scheme, bits)
    assert apart > 100
    assert ours == pytest.approx(theirs, abs=0.01)


ACTIVATIONS = [
    (Scheme("h", number="fp16"), "w16a16", 90),
    (Scheme("b", number="bf16"), "w16a16", 70),
    (Scheme("d", "dynamic"), "w8a8", 70),
    (Scheme("d", "dynamic"), "w4a6", 45),
    (Scheme("d", "dynamic", symmetric_activations=True), "w6a4", 45),
    (Scheme("s", "static", scope="inputs"), "w8a8", 45),
    (Scheme("s", "static", scope="inputs", symmetric_activations=True), "w6a4", 45),
    (Scheme("s", "static", scope="layers"), "w4a6", 45),
    (Scheme("s", "static", scope="layers"), "w8a16", 45),
]


@pytest.mark.parametrize("net", ["cnn", "mlp", Upsampling, Volume])
@pytest.mark.parametrize(("scheme", "bits", "least"), ACTIVATIONS)
def test_activations_are_rounded_as_on_pytorch(net, scheme, bits, least):
    ours, theirs, apart = compare(net, scheme, bits)
    assert apart > least
    assert ours == pytest.approx(theirs, abs=0.1)


@pytest.mark.parametrize("net", [Attention, Steps])
@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (Scheme("w"), "w3"),
        (Scheme("d", "dynamic"), "w4a6"),
        (Scheme("s", "static", scope="inputs"), "w8a8"),
    ],
)
def test_attention_and_recurrent_layers_are_rounded_as_the_products_they_are(net, scheme, bits):
    ours, theirs, apart = compare(net, scheme, bits)
    assert apart > 45
    assert ours == pytest.approx(theirs, abs=0.1)
    covered = [simulated(one, net, scheme, bits).facts.quantized_parameters for one in BOTH]
    assert covered[0] == covered[1]


def test_outputs_of_attention_and_steps_that_share_a_product_share_a_range():
    """So the two simulations differ, but not in how far they are from float."""
    for net in (Attention, Steps):
        ours, theirs, apart = compare(net, Scheme("s", "static", scope="layers"), "w8a8")
        assert 30 < apart < 100
        assert ours == pytest.approx(theirs, abs=1)


def test_the_file_holds_the_rounded_weights_as_floats():
    scheme = Scheme("w", granularity="per_tensor")
    artifact = simulated(BACKEND, "mlp", scheme, "w3")
    found = [product.values for product in operations(read_model(artifact.data))]
    layers = [layer for layer in given("mlp")[0].modules() if isinstance(layer, nn.Linear)]
    for values, layer in zip(found, layers, strict=True):
        exact = layer.weight.detach().numpy()
        np.testing.assert_array_equal(
            values, quantize_dequantize_weights(exact, scheme, Bits.parse("w3"))
        )


def test_facts_tell_what_a_simulation_is():
    facts = simulated(BACKEND, "cnn", Scheme("s", "static"), "w4a8").facts
    theirs = simulated(REFERENCE, "cnn", Scheme("s", "static", scope="layers"), "w4a8").facts
    assert facts == theirs
    kept = Scheme("w", weights=("linear",), layers=(("8", "float"),))
    facts = simulated(BACKEND, "cnn", kept, "w4").facts
    assert facts.coverage == {"linear": (32768, 32768)}
    assert facts.quantized_parameters == 32768
    assert facts.notes == ("3 of 4 weight tensors stay float",)


def test_layers_get_activation_bits_of_their_own():
    mixed = Scheme("s", "static", scope="layers", layers=(("2", "w3a5"), ("6", "float")))
    ours, _, apart = compare("cnn", mixed, "w8a8")
    assert apart > 45
    assert ours < compare("cnn", Scheme("s", "static", scope="layers"), "w8a8")[0] - 10


def test_one_tensor_is_rounded_once_for_all_who_read_it():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, input):  # noqa: A002 - the name of a lone input
            return self.left(input).tanh() * self.right(input)

    rows = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    net = Fork().eval()
    artifact = BACKEND.quantize(
        lambda: net,
        BACKEND.convert(lambda: net, {"input": rows[:1]}),
        ask(Scheme("d", "dynamic"), "w8a8"),
        None,
    )
    model = read_model(artifact.data)
    assert operator_kinds(model, model.subgraphs[0]).count("REDUCE_MIN") == 1


def test_dynamic_ranges_of_zeros_and_outliers_are_those_of_the_example_alone():
    model, _ = given("mlp")
    inputs = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    inputs[1], inputs[2] = 0, 1e6 * inputs[2]
    found = []
    for backend in BOTH:
        artifact = simulated(backend, "mlp", Scheme("d", "dynamic"), "w8a8")
        found.append(backend.open(artifact, lambda: model, 1)({"input": inputs})["output"])
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_file_is_simulated_without_torch(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(baseline(BACKEND, "cnn").data)
    _, inputs = given("cnn")
    float_file = BACKEND.convert(lambda: path, {"input": inputs["input"][:1]})
    layers = (("*output*", "float"),)
    asked = ask(Scheme("s", "static", layers=layers), "w4a6")
    artifact = BACKEND.quantize(lambda: path, float_file, asked, inputs)
    named = simulated(
        REFERENCE, "cnn", Scheme("s", "static", scope="layers", layers=(("8", "float"),)), "w4a6"
    )
    ours, theirs = run(BACKEND, artifact, "cnn"), run(REFERENCE, named, "cnn")
    assert sqnr_db(theirs, ours) > 45


@pytest.mark.parametrize(
    ("scheme", "bits", "reason"),
    [
        (Scheme("s", "static", scope="all"), "w8a8", "only inputs and outputs of layers"),
        (Scheme("d", "dynamic", scope="layers"), "w8a8", "for the inputs of layers only"),
        (Scheme("n", number="posit"), "w8", "tflite does not know number 'posit'"),
    ],
)
def test_what_cannot_be_simulated_has_its_reason(scheme, bits, reason):
    support = BACKEND.support(ask(scheme, bits))
    assert not support.supported
    assert reason in support.reason


def test_static_schemes_round_inputs_and_outputs_unless_they_say():
    assert BACKEND.support(ask(Scheme("s", "static"), "w3a5")).scope == "layers"
    assert BACKEND.support(ask(Scheme("s", "static", scope="inputs"), "w3a5")).scope == "inputs"
    assert BACKEND.support(ask(Scheme("d", "dynamic"), "w3a5")).scope == "inputs"


def test_what_is_wrong_with_a_scheme_or_its_data_is_told():
    with pytest.raises(PlugInError, match=r"'head\*' under layers matches none of .*\(1, 3, 5\)"):
        simulated(BACKEND, "mlp", Scheme("w", layers=(("head*", "float"),)), "w8")
    with pytest.raises(PlugInError, match="return the dequantized weights in the same shape"):
        simulated(BACKEND, "mlp", Scheme("own", weight_quantizer=lambda w, _: w[:1]), "w8")
    asked = ask(Scheme("s", "static"), "w8a8")
    with pytest.raises(DataError, match="need calibration examples, and there are none"):
        BACKEND.quantize(lambda: None, baseline(BACKEND, "mlp"), asked, {})
    bad = {"input": np.full((2, 1, 8, 8), np.nan, np.float32)}
    with pytest.raises(NonFiniteError, match="calibration met 64 activations"):
        BACKEND.quantize(lambda: None, baseline(BACKEND, "mlp"), asked, bad)


# Layer by layer


def sensitivity(backend, net, scheme, bits):
    model, inputs = given(net)
    asked = ask(scheme, bits)
    rows = backend.layer_sensitivity(
        lambda: model, asked, inputs if asked.calibration else None, inputs
    )
    return {(row.layer, row.mode): row for row in rows}


@pytest.mark.parametrize(
    ("net", "scheme", "bits"),
    [
        ("cnn", Scheme("w"), "w3"),
        ("mlp", Scheme("d", "dynamic", granularity="per_tensor"), "w4a6"),
        ("cnn", Scheme("s", "static", scope="layers", layers=(("2", "w8a8"),)), "w4a6"),
        ("cnn", Scheme("s", "static", scope="inputs", layers=(("6", "float"),)), "w4a6"),
    ],
)
def test_layers_are_as_sensitive_as_on_pytorch(net, scheme, bits):
    ours, theirs = (sensitivity(backend, net, scheme, bits) for backend in BOTH)
    assert list(ours) == list(theirs)
    for key, row in ours.items():
        other = theirs[key]
        assert (row.parameters, row.macs, row.bits) == (other.parameters, other.macs, other.bits)
        assert row.sqnr_db == pytest.approx(other.sqnr_db, abs=0.1)
        assert row.weight_sqnr_db == pytest.approx(other.weight_sqnr_db, abs=1e-6)
        assert row.expected_weight_sqnr_db == pytest.approx(other.expected_weight_sqnr_db, abs=1e-6)


def test_embeddings_and_each_weight_of_a_recurrent_layer_are_layers():
    rows = sensitivity(BACKEND, Steps, Scheme("d", "dynamic"), "w3a8")
    steps = ["steps.weight_ih_l0", "steps.weight_hh_l0"]
    assert {name for name, mode in rows if mode == "only"} == {"embed", *steps, "head"}
    assert rows["embed", "only"].macs == 0
    assert sum(rows[step, "only"].parameters for step in steps) == 2 * 48 * 12
    whole = sqnr_db(
        run(BACKEND, baseline(BACKEND, Steps), Steps),
        run(BACKEND, simulated(BACKEND, Steps, Scheme("d", "dynamic"), "w3a8"), Steps),
    )
    for (_, mode), row in rows.items():
        assert row.sqnr_db > whole
        assert (row.weight_sqnr_db is None) == (mode == "all_but")
