"""A proposal promises the bits per weight that the artifact then has."""

import functools
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from qb_cluster.catalog import plugins
from qb_cluster.contracts import FLOAT, Bits, Quantization, Ref
from qb_cluster.quantization import schemes
from qb_cluster.report.proposal import propose
from qb_cluster.report.run_proposal import storage_of
from qb_cluster.spec import named_backend, named_scheme
from qb_models.minilm import encoder, sentences

pytestmark = pytest.mark.frameworks

BACKENDS = ("pytorch", "onnxruntime", "tflite")
SCHEME = Ref("weight_only", "weight_only")


class Words(nn.Module):
    """A table beside which the layer is small, and whose scales are not."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(300, 48), nn.Linear(48, 10)

    def forward(self, input):  # noqa: A002 - the name of a lone input
        return self.head(torch.relu(self.embed(input).mean(1)))


def words():
    torch.manual_seed(0)
    return Words().eval(), {"input": np.random.default_rng(0).integers(0, 300, (8, 6))}


def digits():
    model = plugins.find("model", "digits-cnn")()
    found = plugins.find("dataset", "digits")()
    return model, {"input": found["inputs"][:8]}


def minilm():
    inputs = sentences()["inputs"]
    return encoder(), {name: values[:2] for name, values in inputs.items()}


NETS = {"words": words, "digits": digits, "minilm": minilm}


@functools.cache
def given(net):
    return NETS[net]()


@functools.cache
def measured(net):
    model, inputs = given(net)
    rows = [
        row
        for width in ("w4", "w8")
        for row in named_backend(Ref("pytorch", "pytorch")).backend.layer_sensitivity(
            lambda: model,
            Quantization(schemes.weight_only(), Bits.parse(width), "simulated"),
            None,
            inputs,
        )
    ]
    return pd.DataFrame([asdict(row) for row in rows])


def promised_and_delivered(net, backend, budget):
    model, inputs = given(net)
    first = {name: values[:1] for name, values in inputs.items()}
    target, measurer = (named_backend(Ref(name, name)) for name in (backend, "pytorch"))
    parameters = measurer.backend.convert(lambda: model, first).facts.parameters
    storage = storage_of(target, named_scheme(SCHEME), None, parameters)
    found = propose(measured(net), budget_bits=budget, budget_sqnr_db=None, storage=storage)
    widest = max(bits for bits in found.layers.values() if bits != FLOAT)
    asked = Quantization(schemes.weight_only(layers=found.layers), Bits.parse(widest), "native")
    assert target.backend.support(asked).supported
    baseline = target.backend.convert(lambda: model, first)
    facts = target.backend.quantize(lambda: model, baseline, asked, None).facts
    return found, facts.bits_per_weight


@pytest.mark.parametrize(
    ("net", "budget"),
    [("words", 8.72), ("digits", 6), pytest.param("minilm", 7, marks=pytest.mark.nightly)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bits_that_a_proposal_promises_are_those_of_the_artifact(net, budget, backend):
    found, delivered = promised_and_delivered(net, backend, budget)
    assert found.expected_bits_per_weight == pytest.approx(delivered, rel=0.02)
    assert found.expected_bits_per_weight <= budget
    assert len({*found.layers.values()}) > 1  # it did lower something


def test_embeddings_are_measured_and_multiply_nothing():
    rows = measured("words")
    table = rows[rows["layer"] == "embed"]
    assert [*table["mode"]] == ["only", "all_but"] * 2
    assert {*table["macs"]} == {0}
    assert {*table["kind"]} == {"embedding"}
    assert {*table["shape"]} == {(300, 48)}
    assert (table[table["mode"] == "only"]["sqnr_db"] < 60).all()
