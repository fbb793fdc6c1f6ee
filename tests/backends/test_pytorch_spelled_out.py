"""Attention and recurrent layers written as the products they are compute what they did."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization
from qb_cluster.quantization import schemes
from qb_pytorch import PyTorchBackend
from qb_pytorch.layers import count_macs
from qb_pytorch.spelled_out import spell_out

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def written(layer):
    layer = layer.eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return layer, spell_out(copy.deepcopy(layer))


def agree(one, two):
    for left, right in zip(one, two, strict=True):
        if left is None:
            assert right is None
        elif isinstance(left, tuple):
            agree(left, right)
        else:
            assert left.shape == right.shape
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


PADDING = torch.zeros(3, 7, dtype=torch.bool)
PADDING[:, 5:] = True
MASKS = {
    "none": {},
    "no weights": {"need_weights": False},
    "padding": {"key_padding_mask": PADDING},
    "added": {"attn_mask": torch.linspace(-2, 2, 35).reshape(5, 7)},
    "each head": {
        "attn_mask": torch.linspace(-2, 2, 12 * 35).reshape(12, 5, 7),
        "average_attn_weights": False,
    },
    "causal and padding, fused": {
        "attn_mask": torch.triu(torch.ones(5, 7, dtype=torch.bool), 1),
        "key_padding_mask": PADDING.clone(),
        "need_weights": False,
    },
}


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 12, "vdim": 20}])
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_attention_computes_the_same(mask, options, batch_first):
    layer, other = written(nn.MultiheadAttention(16, 4, batch_first=batch_first, **options))
    sizes = (16, options.get("kdim", 16), options.get("vdim", 16))
    inputs = [torch.randn(3, 5 if i == 0 else 7, size) for i, size in enumerate(sizes)]
    if not batch_first:
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    agree(layer(*inputs, **MASKS[mask]), other(*inputs, **MASKS[mask]))


@torch.no_grad()
def test_attention_without_a_batch_computes_the_same():
    layer, other = written(nn.MultiheadAttention(16, 4))
    one = torch.randn(5, 16)
    agree(layer(one, one, one), other(one, one, one))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_keys_of_its_own_stays_as_it_is(options):
    _, other = written(nn.MultiheadAttention(16, 4, **options))
    assert type(other) is nn.MultiheadAttention


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own encoder
@torch.no_grad()
def test_torch_s_own_encoders_run_with_it():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    layer, other = written(encoder)
    values = torch.randn(3, 5, 16)
    agree([layer(values)], [other(values)])
    padding = PADDING[:, 2:].clone()
    kept = ~padding
    found = [net(values, src_key_padding_mask=padding)[kept] for net in (layer, other)]
    agree(found[:1], found[1:])


RECURRENT = [
    {},
    {"batch_first": True},
    {"bidirectional": True, "num_layers": 2},
    {"batch_first": True, "bias": False, "num_layers": 2},
]


@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@torch.no_grad()
def test_recurrent_layers_compute_the_same(kind, options):
    layer, other = written(kind(6, 8, **options))
    values = torch.randn(4, 5, 6)
    agree(layer(values), other(values))
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    states = [torch.randn(count, 4 if options.get("batch_first") else 5, 8) for _ in range(2)]
    start = tuple(states) if kind is nn.LSTM else states[0]
    agree(layer(values, start), other(values, start))
    agree(layer(values[0]), other(values[0]))


def test_a_recurrent_layer_of_relus_computes_the_same():
    layer, other = written(nn.RNN(6, 8, nonlinearity="relu"))
    with torch.no_grad():
        agree(layer(torch.ones(4, 5, 6)), other(torch.ones(4, 5, 6)))


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_count_every_product_of_every_step(kind, gates):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = kind(6, 8, batch_first=True)

        def forward(self, values):
            return self.steps(values)[0]

    macs = count_macs(Net().eval(), {"values": torch.randn(1, 10, 6)})
    assert macs.total == macs.weighted == 10 * gates * 8 * (6 + 8)


# One function, one set of weights, written three ways


class Attending(nn.Module):
    """Self-attention of two heads over 16 values, by Linears of its own."""

    def __init__(self, attend):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.attend = attend

    def forward(self, values):
        q, k, v = (
            layer(values).unflatten(-1, (2, 8)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        return self.o(self.attend(q, k, v).transpose(1, 2).flatten(-2))


def by_hand(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


class Multihead(nn.Module):
    """The same by torch's own layer."""

    def __init__(self, other):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        with torch.no_grad():
            parts = (other.q, other.k, other.v)
            self.attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            self.attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        self.attention.out_proj = other.o

    def forward(self, values):
        return self.attention(values, values, values, need_weights=False)[0]


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (schemes.weight_only(), "w4"),
        (schemes.weight_only("per_tensor"), "w8"),
        (schemes.dynamic(), "w8a8"),
        (schemes.static(), "w8a8"),
        (schemes.static(activations="layers"), "w8a8"),
    ],
)
@pytest.mark.parametrize("execution", ["native", "simulated"])
def test_one_function_gives_the_same_numbers_however_it_is_written(scheme, bits, execution):
    hand = Attending(by_hand).eval()
    fused = Attending(functional_attention).eval()
    fused.load_state_dict(hand.state_dict())
    nets = [hand, fused, Multihead(hand).eval()]
    inputs = {"values": np.random.default_rng(0).normal(size=(8, 5, 16)).astype(np.float32)}
    static = scheme.activations == "static"
    asked = Quantization(scheme, Bits.parse(bits), execution, Calibration() if static else None)
    if not BACKEND.support(asked).supported:
        assert scheme.scope == "layers"
        return
    found = []
    for net in nets:
        baseline = BACKEND.convert(lambda net=net: net, {"values": inputs["values"][:1]})
        made = BACKEND.quantize(lambda net=net: net, baseline, asked, inputs if static else None)
        total = {kind: count for kind, (count, _) in made.facts.coverage.items()}
        assert sum(total.values()) == 4 * 16 * 16
        found.append(BACKEND.open(made, lambda net=net: net, 1)(inputs)["output"])
    exact = BACKEND.open(baseline, lambda: nets[2], 1)(inputs)["output"]
    noise = np.abs(found[0] - exact).max()
    for one, two in itertools.pairwise(found):
        # Sums in another order may move an activation by a level, here and there.
        assert np.median(np.abs(one - two)) < 1e-6
        assert np.abs(one - two).max() < noise


def functional_attention(q, k, v):
    return nn.functional.scaled_dot_product_attention(q, k, v)
