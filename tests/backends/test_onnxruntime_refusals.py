"""What the ONNX Runtime backend cannot do: the status, and one line with the cause."""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from onnxruntime.quantization import QDQQuantizer
from torch import nn

from qb_cluster.contracts import Artifact, Bits, Calibration, Quantization, Scheme
from qb_cluster.errors import CellError, OutOfMemoryError, PlugInError, UnsupportedError
from qb_onnxruntime import OnnxRuntimeBackend
from qb_onnxruntime.reason import reason
from qb_onnxruntime.support import KNOWN

pytestmark = pytest.mark.frameworks

ROWS = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
STATIC = Quantization(Scheme("static", "static"), Bits(8, 8), "native", Calibration())


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def baseline():
    return OnnxRuntimeBackend().convert(mlp, {"input": ROWS[:1]})


def opened(baseline, change):
    """Open the float artifact with something changed in it."""
    model = onnx.load_from_string(baseline.data)
    change(model)
    broken = Artifact(model.SerializeToString(), baseline.format, baseline.facts)
    return OnnxRuntimeBackend().open(broken, lambda: None, 1)


# Files


def transposed(model):
    node = helper.make_node("Transpose", ["input"], ["turned"], "turn", perm=[0, 2, 3, 1])
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "turned"


def from_the_future(model):
    model.ir_version = 99


def with_unheard_of_operator(model):
    model.graph.node[0].op_type = "FutureLinear"


def with_unheard_of_kernel(model):
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].domain = "com.microsoft"
    model.graph.node[0].op_type = "MatMulNBits9"


def with_unheard_of_operators(model):
    model.opset_import[0].version = 999


def test_an_invalid_graph_is_unsupported_with_the_runtimes_own_reason(baseline):
    with pytest.raises(
        UnsupportedError, match=r"refuses this graph \(Fail: Node \(turn\) .*perm"
    ) as raised:
        opened(baseline, transposed)
    assert "newer" not in str(raised.value)
    assert "install" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        from_the_future,
        with_unheard_of_operator,
        with_unheard_of_kernel,
        with_unheard_of_operators,
    ],
)
def test_a_newer_file_is_told_from_one_that_nobody_can_open(baseline, change):
    with pytest.raises(CellError, match=r"is too old for this file .* install") as raised:
        opened(baseline, change)
    assert raised.value.status == "failed"
    assert "\n" not in str(raised.value)


def test_want_of_memory_is_not_the_graphs_fault(baseline, monkeypatch):
    def session(*_, **__):
        raise RuntimeError("Exception during initialization: std::bad_alloc")

    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(OutOfMemoryError, match="bad_alloc"):
        opened(baseline, lambda _: None)


# What onnxruntime's own quantizers do


def test_a_graph_that_the_quantizer_breaks_is_unsupported_with_the_reason(baseline, monkeypatch):
    quantize_model = QDQQuantizer.quantize_model

    def break_it(self):
        quantize_model(self)
        transposed(self.model.model)

    monkeypatch.setattr(QDQQuantizer, "quantize_model", break_it)
    with pytest.raises(UnsupportedError, match=r"refuses this graph \(Fail: Node \(turn\) .*perm"):
        OnnxRuntimeBackend().quantize(mlp, baseline, STATIC, {"input": ROWS})


@pytest.mark.parametrize("error", [ValueError("no\nscale"), AssertionError(), KeyError("head")])
def test_whatever_the_quantizer_raises_is_unsupported_in_one_line(baseline, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(QDQQuantizer, "quantize_model", fail)
    with pytest.raises(UnsupportedError, match=f"static quantizer .*{type(error).__name__}") as e:
        OnnxRuntimeBackend().quantize(mlp, baseline, STATIC, {"input": ROWS})
    assert "\n" not in str(e.value)
    assert e.value.__cause__ is error


# Exports


class OneAtATime(nn.Module):
    def forward(self, input):  # noqa: A002 - the contract's name
        return input.view(1, 6) * 2


class Never(nn.Module):
    def forward(self, input):  # noqa: A002 - the contract's name
        raise ValueError(f"expected\nimages, not {input.ndim} axes")


class Untranslatable(nn.Module):
    def forward(self, input):  # noqa: A002 - the contract's name
        return torch.linalg.eigvals(input[:, :, None] * input[:, None]).real


def test_a_model_for_one_example_at_a_time_is_unsupported():
    with pytest.raises(UnsupportedError, match=r"fails on two \(RuntimeError: shape '\[1, 6\]'"):
        OnnxRuntimeBackend().convert(OneAtATime, {"input": ROWS[:1]})


def test_a_model_that_fails_by_itself_is_failed_in_one_line():
    with pytest.raises(PlugInError, match=r"\(ValueError: expected images, not 2 axes\)"):
        OnnxRuntimeBackend().convert(Never, {"input": ROWS[:1]})


def test_an_operator_that_cannot_be_exported_is_named():
    with pytest.raises(
        UnsupportedError,
        match=r"cannot convert .*DispatchError: No ONNX function found for .*aten\.linalg_eig",
    ) as raised:
        OnnxRuntimeBackend().convert(Untranslatable, {"input": ROWS[:1]})
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_a_reason_leaves_out_what_onnxruntime_says_of_itself():
    said = (
        "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/core/graph.cc:5 void f(int) Node (turn)"
    )
    assert reason(ValueError(said)) == "ValueError: Node (turn)"


# Schemes that nobody has heard of


@pytest.mark.parametrize("field", KNOWN)
@pytest.mark.parametrize("base", [Scheme("weight_only"), Scheme("static", "static")])
def test_what_the_backend_has_not_heard_of_is_refused(field, base):
    scheme = dataclasses.replace(base)
    object.__setattr__(scheme, field, "int3_block_magic")
    for bits in (Bits(8), Bits(8, 8)):
        told = OnnxRuntimeBackend().support(Quantization(scheme, bits, "native"))
        assert not told.supported
        assert told.reason.startswith(f"onnxruntime does not know {field} 'int3_block_magic'; it ")


def test_an_unknown_execution_is_refused():
    quantization = Quantization(Scheme("weight_only"), Bits(8), "native")
    object.__setattr__(quantization, "execution", "imagined")
    assert not OnnxRuntimeBackend().support(quantization).supported
