"""Weight scales of either sign on real kernels, in a small vision transformer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization
from qb_cluster.quantization import schemes
from qb_cluster.quantization.weights import quantize_dequantize_weights, quantize_weights
from qb_onnxruntime import OnnxRuntimeBackend
from qb_pytorch import PyTorchBackend

pytestmark = pytest.mark.frameworks

RNG = np.random.default_rng(5)
IMAGES = RNG.normal(0.3, 1, (24, 3, 8, 8)).astype(np.float32)


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens):
        query, key, value = self.qkv(self.norms[0](tokens)).chunk(3, -1)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        tokens = tokens + self.projection(scores.softmax(-1) @ value)
        return tokens + self.mlp(self.norms[1](tokens))


class VisionTransformer(nn.Module):
    """16 patches, two blocks of width 64, weights drawn from a Gaussian."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 2, 2)
        self.blocks = nn.Sequential(Block(64), Block(64))
        self.head = nn.Linear(64, 16)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.1)

    def forward(self, input):  # noqa: A002 - the contract's name
        tokens = self.patches(input).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens).mean(1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return VisionTransformer().eval()


@pytest.fixture(scope="module")
def native(net):
    """Give what a backend computes natively."""
    baselines = {
        kind: kind().convert(lambda: net, {"input": IMAGES[:1]})
        for kind in (OnnxRuntimeBackend, PyTorchBackend)
    }

    def run(backend, scheme, bits):
        quantization = Quantization(scheme, Bits.parse(bits), "native")
        told = backend.support(quantization)
        assert told.supported, told.reason
        baseline = baselines[type(backend)]
        artifact = backend.quantize(lambda: net, baseline, quantization, None)
        return backend.open(artifact, lambda: net, 1)({"input": IMAGES})["output"]

    return run


def expected(net, scheme, bits, kinds=nn.Linear | nn.Conv2d):
    """Give what the reference's weights make of it."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, kinds):
                weight = layer.weight.numpy().copy()
                rounded = quantize_dequantize_weights(weight, scheme, Bits.parse(bits))
                layer.weight.copy_(torch.from_numpy(rounded))
        return net(torch.from_numpy(IMAGES)).numpy()


def sqnr_db(reference, values):
    noise = np.sum((reference.astype(np.float64) - values) ** 2)
    return 10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise) if noise else np.inf


def groups(size, **options):
    return schemes.weight_only(granularity="per_group", group_size=size, **options)


def test_scales_of_both_signs_are_there_to_be_stored(net):
    weight = net.head.weight.detach().numpy()
    scale = quantize_weights(weight, groups(32), Bits(4)).scale
    assert 0.2 < (scale < 0).mean() < 0.8


@pytest.mark.parametrize("bits", ["w2", "w4", "w8"])
@pytest.mark.parametrize("size", [32, 12])  # 12: no block of MatMulNBits, so dequantized
@pytest.mark.parametrize("level", [1, 4])
def test_onnxruntime_computes_what_signed_scales_stand_for(net, native, bits, size, level):
    got = native(OnnxRuntimeBackend(accuracy_level=level), groups(size), bits)
    # At level 4 the kernels round activations to 8 bits.
    assert sqnr_db(expected(net, groups(size), bits), got) > (90 if level == 1 else 25)


@pytest.mark.parametrize("bits", ["w2", "w4", "w8"])
def test_torch_computes_what_signed_scales_stand_for(net, native, bits):
    got = native(PyTorchBackend(), groups(32), bits)
    # Rows of 12 are no whole group: the convolution stays float there.
    assert sqnr_db(expected(net, groups(32), bits, nn.Linear), got) > 90


@pytest.mark.parametrize("backend", [OnnxRuntimeBackend, PyTorchBackend])
def test_integer_kernels_take_signed_scales_too(net, native, backend):
    scheme = schemes.dynamic(weight_range="signed_max")
    kinds = nn.Linear | nn.Conv2d if backend is OnnxRuntimeBackend else nn.Linear
    assert sqnr_db(expected(net, scheme, "w4a8", kinds), native(backend(), scheme, "w4a8")) > 25


def test_onnxruntime_refuses_signed_scales_where_its_quantizer_needs_positive_ones():
    scheme = schemes.static(weight_range="signed_max")
    quantization = Quantization(scheme, Bits(8, 8), "native", Calibration())
    told = OnnxRuntimeBackend().support(quantization)
    assert not told.supported
    assert "positive weight scales only" in told.reason


def test_the_default_of_groups_loses_less_on_weights_than_the_narrow_grid(net):
    for bits, least in ((4, 0.8), (3, 2), (2, 4.5)):
        weight = net.blocks[0].qkv.weight.detach().numpy()
        narrow, default = (
            sqnr_db(weight, quantize_dequantize_weights(weight, scheme, Bits(bits)))
            for scheme in (groups(32, weight_range="minmax"), groups(32))
        )
        assert default > narrow + least


@pytest.mark.parametrize(("bits", "gain"), [("w4", 1.8), ("w2", 5.1)])
def test_the_default_of_groups_loses_less_on_outputs_on_average_over_24_nets(bits, gain):
    gains = []
    for seed in range(24):
        torch.manual_seed(seed)
        net = VisionTransformer().eval()
        with torch.no_grad():
            exact = net(torch.from_numpy(IMAGES)).numpy()
        narrow, default = (
            sqnr_db(exact, expected(net, scheme, bits))
            for scheme in (groups(32, weight_range="minmax"), groups(32))
        )
        gains.append(default - narrow)
    # The figure of docs/schemes.md. Other kernels of torch may tip single roundings.
    assert np.mean(gains) == pytest.approx(gain, abs=0.4)
