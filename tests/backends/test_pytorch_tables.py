"""Embeddings in integers beside static kernels."""

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.quantization import schemes
from qb_pytorch import PyTorchBackend

pytestmark = pytest.mark.frameworks

BACKEND = PyTorchBackend()
IDS = {"input": np.random.default_rng(0).integers(0, 50, (32, 7))}


class Words(nn.Module):
    """Looks words up, and in ``head`` multiplies by the very table."""

    def __init__(self, head="own", **options):
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 32, **options), nn.Linear(32, 32)
        self.again = self.embed if head == "looked up again" else None
        self.head = nn.Linear(32, 50, bias=False)
        self.is_tied = head == "tied"

    def forward(self, input):  # noqa: A002 - the name of a lone input
        values = self.mix(self.embed(input)).mean(1)
        if self.again is not None:
            values = values + self.again(input[:, 0])
        if self.is_tied:
            return nn.functional.linear(values, self.embed.weight)
        return self.head(values)


def quantized(net, execution, bits="w8a8", **options):
    """The facts, and the SQNR against float."""
    base = BACKEND.convert(lambda: net, {"input": IDS["input"][:1]})
    asked = Quantization(schemes.static(**options), Bits.parse(bits), execution, Calibration())
    made = BACKEND.quantize(lambda: net, base, asked, IDS)
    floats, outputs = (BACKEND.open(one, lambda: net, 1)(IDS)["output"] for one in (base, made))
    return made.facts, deviation(floats, outputs).sqnr_db


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
@pytest.mark.parametrize("head", ["own", "looked up again", "tied"])
def test_a_table_is_in_integers_however_the_model_uses_it(head, bits):
    torch.manual_seed(0)
    net = Words(head).eval()
    facts, native = quantized(net, "native", bits)
    assert facts.coverage["embedding"] == (1600, 1600)
    assert facts.parameter_bytes < 4 * facts.parameters
    _, simulated = quantized(net, "simulated", bits)
    assert native == pytest.approx(simulated, abs=1.5)  # the rounding of activations is another


def test_a_table_that_looking_up_changes_stays_float_and_the_facts_say_so():
    torch.manual_seed(0)
    facts, _ = quantized(Words(max_norm=1.0).eval(), "native")
    assert facts.coverage["embedding"] == (0, 1600)
    assert "1 of 3 weight tensors stay float" in facts.notes


def test_a_table_that_the_scheme_leaves_float_stays_so():
    torch.manual_seed(0)
    facts, _ = quantized(Words().eval(), "native", layers={"embed": "float"})
    assert "embedding" not in facts.coverage
    assert facts.parameter_bytes > 4 * 1600
