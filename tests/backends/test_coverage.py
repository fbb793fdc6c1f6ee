"""One scheme covers the same on every backend, natively and simulated, or the facts say so."""

import functools

import numpy as np
import pytest
import torch
from attention_net import Vit
from torch import nn

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref
from qb_cluster.contracts.coverage import covered_share
from qb_cluster.quantization import schemes

pytestmark = pytest.mark.frameworks

BACKENDS = ("pytorch", "onnxruntime", "tflite")


class Steps(nn.Module):
    def __init__(self, kind, width=32):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, width), nn.Linear(width, 10)
        self.steps = kind(width, width, batch_first=True)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(self.steps(self.embed(input))[0][:, -1])


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        values = torch.relu(self.down_norm(self.down(input)))
        return self.out(torch.relu(self.up_norm(self.up(values))))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(50, 32, mode="mean"), nn.Linear(32, 10)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(torch.relu(self.embed(input)))


NETS = {
    "vit": (Vit, {"linear": 16 * 64 + 640, "attention": 4 * 64 * 64}),
    "lstm": (
        functools.partial(Steps, nn.LSTM, width=64),  # torch.onnx.export joins smaller gates itself
        {"linear": 640, "embedding": 3200, "recurrent": 32768},
    ),
    "gru": (
        functools.partial(Steps, nn.GRU),
        {"linear": 320, "embedding": 1600, "recurrent": 6144},
    ),
    "unet": (Unet, {"conv": 96, "conv_transpose": 256}),
    "bag": (Bag, {"linear": 320, "embedding": 1600}),
}
# A converter writes attention and recurrent layers as the products they are.
SAME = {"attention": "linear", "recurrent": "linear"}
PARTS = {
    ("pytorch", "lstm"): {"recurrent"},
    ("pytorch", "gru"): {"recurrent"},
    ("pytorch", "unet"): {"conv_transpose"},
    ("pytorch", "bag"): {"embedding"},
}
"""What has no kernel in whole backends: these cells are partial."""
UNCONVERTED = {("tflite", "bag")}
WEIGHT_ONLY = [("w8", 8), ("w4", 4)]


@functools.cache
def given(net):
    torch.manual_seed(0)
    model = NETS[net][0]().eval()
    rng = np.random.default_rng(0)
    if net in {"lstm", "gru", "bag"}:
        return model, {"input": rng.integers(0, 50, (32, 10))}
    shape = (32, 12, 16) if net == "vit" else (32, 1, 16, 16)
    return model, {"input": rng.standard_normal(shape).astype(np.float32)}


@functools.cache
def baseline(backend, net):
    model, inputs = given(net)
    return made_by(backend).convert(lambda: model, {"input": inputs["input"][:1]})


@functools.cache
def made_by(name):
    return plugins.make("backend", Ref(name, name))


def outputs(backend, artifact, net):
    model, inputs = given(net)
    run = made_by(backend).open(artifact, lambda: model, 1)
    rows = [run({"input": inputs["input"][i : i + 1]}) for i in range(32)]
    return np.concatenate([next(iter(row.values())) for row in rows]).astype(np.float64)


@functools.cache
def quantized(backend, net, execution, scheme, bits):
    model, inputs = given(net)
    static = scheme.activations == "static"
    asked = Quantization(scheme, Bits.parse(bits), execution, Calibration() if static else None)
    assert made_by(backend).support(asked).supported
    artifact = made_by(backend).quantize(
        lambda: model, baseline(backend, net), asked, inputs if static else None
    )
    return artifact.facts, outputs(backend, artifact, net)


def sqnr_db(exact, found):
    noise = max(np.sum((exact - found) ** 2), 1e-300)
    return 10 * np.log10(np.sum(exact**2) / noise)


def kinds(found):
    """Coverage, with kinds that a converter cannot tell apart put together."""
    merged = {}
    for kind, (done, total) in found.items():
        name = SAME.get(kind, kind)
        before = merged.get(name, (0, 0))
        merged[name] = before[0] + done, before[1] + total
    return merged


@pytest.mark.parametrize("net", NETS)
def test_the_simulation_covers_every_weight_by_its_kind(net):
    for scheme, bits in ((schemes.weight_only(), "w4"), (schemes.static(), "w8a8")):
        facts, _ = quantized("pytorch", net, "simulated", scheme, bits)
        assert facts.coverage == {kind: (n, n) for kind, n in NETS[net][1].items()}
        assert facts.fallback_ops == ()


def test_linear_layers_without_a_bias_run_in_integers_on_sequences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    inputs = {"input": np.random.default_rng(0).standard_normal((8, 6, 32)).astype(np.float32)}
    backend = made_by("pytorch")
    asked = Quantization(schemes.static(), Bits(8, 8), "native", Calibration())
    example = {"input": inputs["input"][:1]}
    artifact = backend.quantize(lambda: net, backend.convert(lambda: net, example), asked, inputs)
    assert artifact.facts.integer_layer_mac_share == 1
    assert artifact.facts.parameters == 32 * 32 + 32 * 8
    assert all(layer.bias is None for layer in net if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("bits", ["w8", "w4"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_all_kinds_are_quantized_natively_as_simulated_or_the_facts_say_so(
    backend, net, bits
):
    if (backend, net) in UNCONVERTED:
        return
    scheme = schemes.weight_only()
    facts, found = quantized(backend, net, "native", scheme, bits)
    simulated, expected = quantized("pytorch", net, "simulated", scheme, bits)
    left = PARTS.get((backend, net), set())
    if backend == "tflite" and net == "unet" and bits == "w4":
        left = {"conv", "conv_transpose"}  # depthwise and transposed ones have no 4-bit kernels
    wanted = kinds(simulated.coverage)
    for kind, (done, total) in kinds(facts.coverage).items():
        assert total == wanted[kind][1]
        assert (done < total) == bool({kind, *(k for k in left if SAME.get(k) == kind)} & left)
    assert (covered_share(facts.coverage) == 1) == (not left)
    if not left:
        assert sqnr_db(expected, found) > 60  # the same weights, to float rounding


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("activations", "scheme", "bits"),
    [
        ("none", schemes.weight_only(), "w8"),
        ("dynamic", schemes.dynamic(), "w8a8"),
        ("static", schemes.static(), "w8a8"),
    ],
)
def test_what_a_backend_says_of_kinds_of_layers_is_true_of_its_artifacts(
    backend, net, activations, scheme, bits
):
    if (backend, net) in UNCONVERTED:
        return
    handles = made_by(backend).handles[activations]
    facts, _ = quantized(backend, net, "native", scheme, bits)
    table_in_a_bag = (backend, net) == ("pytorch", "bag")  # EmbeddingBag: its kernel takes floats
    for kind, (done, total) in facts.coverage.items():
        if not (table_in_a_bag and kind == "embedding"):
            assert done == (0 if handles[kind] == "float" else total), kind
    multiplied = {handles[kind] for kind in NETS[net][1] if kind != "embedding"}
    if facts.integer_layer_mac_share is not None and len(multiplied) == 1:
        assert (facts.integer_layer_mac_share == 1) == (multiplied == {"integers"})


@pytest.mark.parametrize(("backend", "scope"), [("onnxruntime", "layers"), ("tflite", "layers")])
@pytest.mark.parametrize(("net", "least"), [("vit", 33), ("unet", 44)])
def test_inputs_and_outputs_of_layers_are_rounded_natively_as_simulated(backend, scope, net, least):
    scheme = schemes.static(activations=scope)
    facts, found = quantized(backend, net, "native", scheme, "w8a8")
    assert facts.scope == scope
    _, like = quantized("pytorch", net, "simulated", scheme, "w8a8")
    _, other = quantized("pytorch", net, "simulated", schemes.static(activations="inputs"), "w8a8")
    assert sqnr_db(like, found) > least
    exact = outputs(backend, baseline(backend, net), net)
    # Rounding outputs costs as much in the simulation as it does in the kernels.
    assert abs(sqnr_db(exact, like) - sqnr_db(exact, found)) < 1
    assert sqnr_db(exact, other) > sqnr_db(exact, found) + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scheme_quantizes_the_kinds_of_layers_that_it_names(backend):
    scheme = schemes.weight_only(weights=["conv"])
    facts, found = quantized(backend, "unet", "native", scheme, "w8")
    assert facts.coverage == {"conv": (96, 96)}
    _, expected = quantized("pytorch", "unet", "simulated", scheme, "w8")
    assert sqnr_db(expected, found) > 60


@pytest.mark.parametrize(
    ("backend", "scheme"),
    [
        ("pytorch", schemes.static(activations="layers")),
        ("pytorch", schemes.static(activations="all")),
        ("pytorch", schemes.dynamic(activations="layers")),
        ("onnxruntime", schemes.dynamic(activations="all")),
        ("tflite", schemes.static(activations="inputs")),
        ("tflite", schemes.dynamic(activations="layers")),
        ("tensorflow", schemes.static(activations="layers")),
        ("tensorflow", schemes.dynamic(activations="all")),
        ("tensorflow", schemes.static(weights=["conv"])),
    ],
)
def test_what_a_runtime_cannot_cover_is_unsupported_and_says_why(backend, scheme):
    calibration = Calibration() if scheme.activations == "static" else None
    support = made_by(backend).support(Quantization(scheme, Bits(8, 8), "native", calibration))
    assert not support.supported
    assert support.reason


@pytest.mark.parametrize(
    ("backend", "execution", "scope"),
    [
        ("pytorch", "simulated", "inputs"),
        ("pytorch", "native", "inputs"),
        ("onnxruntime", "native", "layers"),
        ("onnxruntime", "simulated", "layers"),
        ("tflite", "native", "layers"),
        ("tensorflow", "native", "all"),
    ],
)
def test_a_backend_says_which_activations_it_rounds_where_a_scheme_leaves_it_open(
    backend, execution, scope
):
    asked = Quantization(schemes.static(), Bits(8, 8), execution, Calibration())
    assert made_by(backend).support(asked).scope == scope
    asked = Quantization(schemes.weight_only(), Bits(8), execution)
    assert made_by(backend).support(asked).scope is None
