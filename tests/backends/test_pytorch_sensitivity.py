"""Per-layer sensitivity, and running a module again without what comes before a layer."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import PlugInError
from qb_pytorch import PyTorchBackend, prefix_reuse, sensitivity
from qb_pytorch.sensitivity import layer_sensitivity

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()


class Block(nn.Module):
    """A shortcut, and additions in place, which change what a submodule has returned."""

    def __init__(self, channels):
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)
        self.short = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images):
        hidden = self.two(self.relu(self.one(images)))
        hidden += self.short(images)
        return self.relu(hidden)


class Net(nn.Module):
    """Blocks, a layer that is called twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.shared = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, input):  # noqa: A002 the lone input's name
        hidden = self.blocks(self.stem(input)).mean((2, 3))
        if float(hidden.sum()) > -1e9:  # what no tracer follows
            hidden = self.shared(self.shared(hidden).relu())
        return self.head(hidden)


class Tied(nn.Module):
    """The head's weight is the first layer's too."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 6)
        self.head.weight = self.first.weight

    def forward(self, input):  # noqa: A002
        return self.head(self.middle(self.first(input).relu()).relu())


class Remembers(nn.Module):
    """Leaves a value on the side, which a skipped call would not."""

    def __init__(self):
        super().__init__()
        self.keeper = Keeper()
        self.head = nn.Linear(6, 6)

    def forward(self, input):  # noqa: A002
        self.keeper.left = None
        self.keeper(input)
        kept = self.keeper.left
        return self.head(input if kept is None else kept)


class Keeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.left = None

    def forward(self, values):
        self.left = self.inner(values)
        return values


def images(count=70):
    rng = np.random.default_rng(0)
    return {"input": rng.normal(size=(count, 3, 6, 6)).astype(np.float32)}


def rows(count=70):
    return {"input": np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)}


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


def asked(activations="none", bits="w3", **options):
    calibration = Calibration() if activations == "static" else None
    scheme = Scheme(activations, activations, **options)
    return Quantization(scheme, Bits.parse(bits), "simulated", calibration)


def sqnr_db(reference, values):
    noise = float(np.sum((reference.astype(float) - values) ** 2))
    return 10 * math.log10(float(np.sum(reference.astype(float) ** 2)) / noise)


ASKED = {
    "weight_only": asked(),
    "dynamic": asked("dynamic", "w4a6"),
    "static": asked("static", "w4a6"),
}


@pytest.mark.parametrize("name", ASKED)
def test_reusing_the_prefix_changes_no_result(name):
    net, quantization = made(Net), ASKED[name]
    examples = images(8) if name == "static" else None
    reused = layer_sensitivity(lambda: net, quantization, examples, images())
    whole = layer_sensitivity(lambda: net, quantization, examples, images(), reuse=False)
    assert reused == whole
    assert len(reused) == 2 * 10


@pytest.mark.parametrize("name", ASKED)
def test_a_layer_alone_and_all_but_one_are_cells_with_float_layers(name):
    net, quantization, inputs = made(Net), ASKED[name], images()
    examples = images(8) if name == "static" else None
    found = {
        (row.layer, row.mode): row
        for row in BACKEND.layer_sensitivity(lambda: net, quantization, examples, inputs)
    }
    baseline = BACKEND.convert(lambda: net, images(1))
    exact = BACKEND.open(baseline, lambda: net, 1)(inputs)["output"]
    bits = str(quantization.bits)
    for mode, layers in (
        ("only", (("blocks.1.one", bits), ("*", "float"))),
        ("all_but", (("blocks.1.one", "float"),)),
    ):
        activations = quantization.scheme.activations
        cell = asked(activations, bits, layers=layers)
        artifact = BACKEND.quantize(lambda: net, baseline, cell, examples)
        outputs = BACKEND.open(artifact, lambda: net, 1)(inputs)["output"]
        row = found["blocks.1.one", mode]
        # One runs 70 examples at once, the other 64 and 6, which rounds float sums apart.
        assert row.sqnr_db == pytest.approx(sqnr_db(exact, outputs), abs=0.1)
        assert row.bits == bits
        assert row.parameters == 8 * 8 * 9
        assert row.macs == 8 * 8 * 9 * 36


def test_a_layer_that_is_never_called_changes_nothing():
    found = layer_sensitivity(lambda: made(Net), asked(), None, images(4))
    (only,) = [row for row in found if (row.layer, row.mode) == ("unused", "only")]
    assert only.sqnr_db == math.inf
    assert only.macs == 0
    assert only.weight_sqnr_db > 5


def test_tied_weights_are_quantized_together():
    net = made(Tied)
    reused = layer_sensitivity(lambda: net, asked(), None, rows())
    assert reused == layer_sensitivity(lambda: net, asked(), None, rows(), reuse=False)
    first, head = (
        next(row for row in reused if (row.layer, row.mode) == (name, "only"))
        for name in ("first", "head")
    )
    assert first.sqnr_db == head.sqnr_db


def test_a_module_with_side_effects_is_run_whole():
    net = made(Remembers)
    reused = layer_sensitivity(lambda: net, asked(), None, rows())
    assert reused == layer_sensitivity(lambda: net, asked(), None, rows(), reuse=False)


def test_layers_left_float_have_no_rows_and_wrong_patterns_are_named():
    found = layer_sensitivity(
        lambda: made(Net), asked(layers=(("blocks.*", "float"), ("head", "w8"))), None, images(4)
    )
    assert {row.layer for row in found} == {"stem", "shared", "unused", "head"}
    bits = {row.layer: row.bits for row in found if row.mode == "only"}
    assert bits == {"stem": "w3", "shared": "w3", "unused": "w3", "head": "w8"}
    with pytest.raises(PlugInError, match="'haed'"):
        layer_sensitivity(lambda: made(Net), asked(layers=(("haed", "w8"),)), None, images(4))


def test_an_outlying_weight_shows_as_missing_decibels():
    net = made(Tied)
    with torch.no_grad():
        net.middle.weight.normal_()
        net.first.weight.normal_()
        net.middle.weight[:, 0] = 40
    found = {
        row.layer: row.weight_sqnr_db - row.expected_weight_sqnr_db
        for row in layer_sensitivity(lambda: net, asked(bits="w8"), None, rows())
        if row.mode == "only"
    }
    # The signal is loud, but what it drowns is what the layer computes with.
    assert abs(found["first"]) < 3
    assert abs(found["middle"]) > 3


# -------------------------------------------------------------------------- prefix reuse


def test_calls_before_the_start_are_not_computed(monkeypatch):
    net = made(Net)
    inputs = {"input": torch.from_numpy(images(2)["input"])}
    recording = prefix_reuse.record(net, inputs)
    computed = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda *_, name=name: computed.append(name))
            original = layer.forward
            monkeypatch.setattr(
                layer,
                "forward",
                lambda *args, name=name, original=original: (
                    computed.append(f"{name}!"),
                    original(*args),
                )[1],
            )
    start = recording.first_use({net.blocks[1].short})
    output = prefix_reuse.replay(net, inputs, recording, start)
    assert torch.equal(output, recording.output)
    really = [name for name in computed if name.endswith("!")]
    assert really == ["blocks.1.short!", "shared!", "shared!", "head!"]


def test_a_module_is_left_as_it_was():
    net = made(Net)
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    prefix_reuse.record(net, {"input": torch.zeros(1, 3, 6, 6)})
    assert {name: set(vars(module)) for name, module in net.named_modules()} == before
    assert sensitivity.BATCH < 70  # so that the tests above run two batches
