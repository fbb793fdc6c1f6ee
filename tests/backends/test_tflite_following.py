"""What the tflite backend rounds around layers, and what it leaves alone there."""

import numpy as np
import pytest
import torch
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_litert.graph import operator_kinds, read_model
from qb_tflite import TFLiteBackend

pytestmark = pytest.mark.frameworks

BACKEND = TFLiteBackend()


class Causal(nn.Module):
    """Attention that looks back alone, after a normalization."""

    def __init__(self):
        super().__init__()
        self.norm, self.projections, self.out = (
            nn.LayerNorm(16),
            nn.Linear(16, 48),
            nn.Linear(16, 8),
        )

    def forward(self, input):  # noqa: A002 - the name of a lone input
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2)
            for part in self.projections(self.norm(input)).chunk(3, -1)
        )
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(found.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def causal():
    torch.manual_seed(0)
    net = Causal().eval()
    values = np.random.default_rng(0).standard_normal((64, 12, 16)).astype(np.float32)
    return net, values, BACKEND.convert(lambda: net, {"input": values[:1]})


def static(causal, scheme, bits="w8a8"):
    net, values, baseline = causal
    asked = Quantization(scheme, Bits.parse(bits), "native", Calibration())
    return BACKEND.quantize(lambda: net, baseline, asked, {"input": values})


def run(artifact, values):
    return BACKEND.open(artifact, lambda: None, 1)({"input": values})["output"]


def sqnr_db(exact, rough):
    return 10 * np.log10(np.sum(exact**2) / np.sum((exact - rough) ** 2))


@pytest.mark.parametrize("scope", ["layers", "all"])
def test_a_causal_mask_survives(causal, scope):
    _, values, baseline = causal
    artifact = static(causal, Scheme("static", "static", scope=scope))
    later = values.copy()
    later[:, 6:] = values[:, 6:][:, ::-1]
    np.testing.assert_array_equal(run(artifact, values)[:, :6], run(artifact, later)[:, :6])
    assert sqnr_db(run(baseline, values), run(artifact, values)) > 30


def rounded(artifact, kind, within=""):
    """Give whether the operations of a kind put out integers, those of a module if one is named."""
    from ai_edge_litert.schema_py_generated import TensorType

    model = read_model(artifact.data)
    graph = model.subgraphs[0]
    outputs = [
        graph.tensors[operator.outputs[0]]
        for operator, found in zip(graph.operators, operator_kinds(model, graph), strict=True)
        if found == kind
    ]
    return [tensor.type == TensorType.INT8 for tensor in outputs if within in tensor.name.decode()]


def test_only_what_follows_a_layer_stays_on_its_integers(causal):
    artifact = static(causal, Scheme("static", "static"))
    assert rounded(artifact, "SLICE") == [True, True, True]  # query, key and value
    of_statistics = rounded(artifact, "RESHAPE", within="LayerNorm")
    assert of_statistics
    assert not any(of_statistics)
    assert not any(rounded(artifact, "BATCH_MATMUL"))


def test_what_follows_a_layer_that_is_left_float_stays_float(causal):
    kept = static(causal, Scheme("static", "static", layers=(("projections", "float"),)))
    assert rounded(kept, "SLICE") == [False, False, False]
    assert sum(rounded(kept, "FULLY_CONNECTED")) == 1
