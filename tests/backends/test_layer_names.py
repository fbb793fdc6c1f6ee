"""A rule under ``layers`` means the same layers of a torch model on every backend."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.catalog import plugins
from qb_cluster.catalog.layer_weights import layer_names
from qb_cluster.contracts import Bits, Quantization, Ref, Scheme
from qb_cluster.errors import PlugInError, UnsupportedError

pytestmark = pytest.mark.frameworks

BACKENDS = (("pytorch", "simulated"), ("onnxruntime", "native"), ("tflite", "native"))
TOGETHER = {"attention": "linear", "recurrent": "linear"}
"""What a converter writes as plain products."""


class Net(nn.Module):
    """A net of modules that run one after the other."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        values = input
        for part in self.children():
            values = part(values)
        return values


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        values = self.embed(input)
        return self.head(self.attention(values, values, values, need_weights=False)[0].mean(1))


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)
        self.steps = nn.LSTM(16, 16, batch_first=True)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(self.steps(self.embed(input))[0][:, -1])


class Folded(nn.Module):
    """Convolutions of a list, whose names a converter drops, and norms that change weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, bias=False) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(2)])
        self.up, self.up_norm = nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        values = self.stem(input)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            values = torch.relu(norm(block(values)))
        return self.up_norm(self.up(values)).mean((2, 3))


class Places(nn.Module):
    """A table of places that are always the same: a converter may look them up itself."""

    def __init__(self):
        super().__init__()
        self.word, self.place = nn.Embedding(50, 16), nn.Embedding(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        places = torch.arange(input.shape[1])
        return self.head(torch.relu(self.word(input) + self.place(places)).mean(1))


def twins():
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.load_state_dict(first.state_dict())
    return Net(first=first, relu=nn.ReLU(), second=second, relu2=nn.ReLU(), head=nn.Linear(16, 4))


def encoder():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(16, 16), layers)


def digits():
    return plugins.find("model", "digits-cnn")()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.out(torch.relu(self.embed(input).mean(1)))


RNG = np.random.default_rng(0)
IDS = {"input": RNG.integers(0, 50, (1, 6))}
ROWS = {"input": RNG.standard_normal((1, 6, 16)).astype(np.float32)}
IMAGES = {"input": RNG.standard_normal((1, 1, 16, 16)).astype(np.float32)}
PIXELS = {"input": RNG.uniform(0, 1, (1, 1, 8, 8)).astype(np.float32)}
NETS = {
    "attention": (Attention, ROWS),
    "lstm": (Steps, IDS),
    "folded": (Folded, IMAGES),
    "twins": (twins, ROWS),
    "encoder": (encoder, ROWS),
    "digits": (digits, PIXELS),
    "tied": (Tied, IDS),
    "places": (Places, IDS),
}
RULES = [
    ("attention", "embed"),
    ("attention", "attention.in_proj.*"),
    ("attention", "attention.out_proj"),
    ("lstm", "embed"),
    ("lstm", "head"),
    ("lstm", "steps.weight_ih_l0"),
    ("lstm", "steps.weight_hh_l0"),
    ("folded", "stem.0"),
    ("folded", "blocks.0"),
    ("folded", "blocks.1"),
    ("folded", "up"),
    ("twins", "first"),
    ("twins", "second"),
    ("encoder", "*.0.self_attn.in_proj.*"),
    ("encoder", "1.layers.1.self_attn.out_proj"),
    ("encoder", "*.1.linear[12]"),
]


@functools.cache
def made_by(name):
    return plugins.make("backend", Ref(name, name))


@functools.cache
def model(net):
    torch.manual_seed(0)
    return NETS[net][0]().eval()


@functools.cache
def baseline(backend, net):
    return made_by(backend).convert(lambda: model(net), NETS[net][1])


def quantized(backend, execution, net, layers, bits="w8"):
    scheme = Scheme("rules", layers=tuple(layers.items()))
    asked = Quantization(scheme, Bits.parse(bits), execution)
    return made_by(backend).quantize(lambda: model(net), baseline(backend, net), asked, None)


def kinds(found):
    merged = {}
    for kind, (done, total) in found.items():
        before = merged.get(TOGETHER.get(kind, kind), (0, 0))
        merged[TOGETHER.get(kind, kind)] = before[0] + done, before[1] + total
    return merged


def outputs(backend, artifact, net):
    run = made_by(backend).open(artifact, lambda: model(net), 1)
    return next(iter(run(NETS[net][1]).values())).astype(np.float64)


@pytest.mark.parametrize(("net", "pattern"), RULES)
def test_a_rule_leaves_the_same_layers_float_on_every_backend(net, pattern):
    whole = kinds(quantized("pytorch", "simulated", net, {}).facts.coverage)
    made = {
        backend: quantized(backend, execution, net, {pattern: "float"})
        for backend, execution in BACKENDS
    }
    covered = {backend: kinds(artifact.facts.coverage) for backend, artifact in made.items()}
    assert covered["onnxruntime"] == covered["tflite"] == covered["pytorch"]
    assert covered["pytorch"] != whole
    # Coverage counts: that they are the same weights shows in what comes out.
    exact, alike = outputs("pytorch", baseline("pytorch", net), net), {}
    for backend, artifact in made.items():
        alike[backend] = outputs(backend, artifact, net)
    noise = np.linalg.norm(alike["pytorch"] - exact)
    for backend in ("onnxruntime", "tflite"):
        if net == "folded" and backend == "tflite":
            continue  # it rounds weights that hold the norms
        assert np.linalg.norm(alike[backend] - alike["pytorch"]) < noise / 5


@pytest.mark.parametrize("net", NETS)
def test_every_backend_finds_every_layer_of_a_model(net):
    for name in layer_names(model(net)):
        # A weight that holds several layers takes one rule for all of them.
        pattern = f"{name.rpartition('.')[0]}.*" if ".in_proj." in name else name
        for backend, execution in BACKENDS:
            rules = {pattern: "w4"} if net != "tied" else {name: "w4", "*": "w4"}
            assert quantized(backend, execution, net, rules, "w8").facts.coverage


@pytest.mark.parametrize(("backend", "execution"), [*BACKENDS, ("pytorch", "native")])
@pytest.mark.parametrize("net", ["attention", "lstm"])
def test_a_pattern_that_matches_nothing_is_the_same_error_everywhere(backend, execution, net):
    message = r"scheme 'rules': the pattern 'haed' under layers matches none of .*head.*\* stands"
    with pytest.raises(PlugInError, match=message):
        quantized(backend, execution, net, {"haed": "float"})


@pytest.mark.parametrize(("backend", "execution"), BACKENDS)
def test_layers_that_share_a_weight_must_get_the_same_bits(backend, execution):
    with pytest.raises(UnsupportedError, match=r"embed, out have one weight here"):
        quantized(backend, execution, "tied", {"out": "float"})


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite"])
def test_projections_that_a_file_holds_as_one_weight_must_get_the_same_bits(backend):
    with pytest.raises(UnsupportedError, match=r"in_proj.k, .*in_proj.v have one weight here"):
        quantized(backend, "native", "attention", {"attention.in_proj.k": "float"})


@pytest.mark.parametrize("backend", ["onnxruntime", "tflite"])
def test_an_export_does_not_depend_on_where_it_was_made(backend):
    again = made_by(backend).convert(lambda: model("twins"), NETS["twins"][1])
    assert again.data == baseline(backend, "twins").data


def test_names_survive_the_operator_set_that_two_bits_need():
    facts = quantized("onnxruntime", "native", "lstm", {"steps.weight_hh_l0": "float"}, "w2").facts
    assert facts.coverage["recurrent"] == (1024, 1024)
