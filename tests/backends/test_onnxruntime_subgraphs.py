"""The ONNX Runtime backend on files whose nodes read names of the graph around them.

A branch and a loop read a weight of the outer graph and the output of an outer layer.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qb_cluster.contracts import Bits, Calibration, Quantization, Scheme
from qb_onnxruntime import OnnxRuntimeBackend
from qb_onnxruntime.subgraphs import all_graphs, names_read, rename_reads

pytestmark = pytest.mark.frameworks

RNG = np.random.default_rng(5)
WEIGHTS = {
    "stem.weight": RNG.normal(size=(6, 32)).astype(np.float32) / 3,
    "shared.weight": RNG.normal(size=(32, 32)).astype(np.float32) / 9,
    "head.weight": RNG.normal(size=(32, 4)).astype(np.float32) / 6,
}
ROWS = RNG.normal(size=(12, 6)).astype(np.float32)
TURNS = 3


def value(name, kind=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def branches():
    """``relu(hidden) @ shared`` for a positive input, else ``hidden @ shared``."""
    then = helper.make_graph(
        [
            helper.make_node("Relu", ["hidden"], ["positive"]),
            helper.make_node("MatMul", ["positive", "shared.weight"], ["then_out"]),
        ],
        "then",
        [],
        [value("then_out")],
    )
    otherwise = helper.make_graph(
        [helper.make_node("MatMul", ["hidden", "shared.weight"], ["else_out"])],
        "else",
        [],
        [value("else_out")],
    )
    return {"then_branch": then, "else_branch": otherwise}


def body():
    """``state @ shared + hidden`` at every turn, within a branch that is always taken."""
    inner = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "shared.weight"], ["product"]),
            helper.make_node("Add", ["product", "hidden"], ["inner_out"]),
        ],
        "inner",
        [],
        [value("inner_out")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["other_out"])], "other", [], [value("other_out")]
    )
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("If", ["go"], ["next"], then_branch=inner, else_branch=other),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state")],
        [value("go_on", TensorProto.BOOL, []), value("next")],
    )


def model_proto():
    nodes = [
        helper.make_node("MatMul", ["x", "stem.weight"], ["hidden"], "stem"),
        helper.make_node("MatMul", ["hidden", "shared.weight"], ["outer"], "shared"),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "nought"], ["is_positive"]),
        helper.make_node("If", ["is_positive"], ["chosen"], "branch", **branches()),
        helper.make_node("Loop", ["turns", "yes", "chosen"], ["looped"], "loop", body=body()),
        helper.make_node("Add", ["looped", "outer"], ["sum"]),
        helper.make_node("MatMul", ["sum", "head.weight"], ["y"], "head"),
    ]
    constants = {"nought": np.float32(0), "turns": np.int64(TURNS), "yes": np.bool_(True)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", shape=["n", 6])],
        [value("y", shape=["n", 4])],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for name, array in {**WEIGHTS, **constants}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def expected(rows):
    stem, shared, head = WEIGHTS.values()
    hidden = rows @ stem
    state = np.where(rows.sum() > 0, np.maximum(hidden, 0), hidden) @ shared
    for _ in range(TURNS):
        state = state @ shared + hidden
    return (state + hidden @ shared) @ head


SCHEMES = {
    Quantization(Scheme("weight_only"), Bits(8), "native"): 1e-3,
    Quantization(Scheme("weight_only"), Bits(4), "native"): 0.1,
    Quantization(Scheme("weight_only"), Bits(16), "native"): 1e-6,
    Quantization(Scheme("dynamic", "dynamic"), Bits(8, 8), "native"): 2e-3,
    Quantization(Scheme("static", "static"), Bits(8, 8), "native", Calibration()): 2e-3,
    Quantization(Scheme("fp8", number="fp8_e4m3"), Bits(8), "native"): 5e-3,
    Quantization(Scheme("fp16", number="fp16"), Bits(16, 16), "native"): 1e-4,
}
"""With the most that they may change of outputs: squares of differences by squares of outputs."""

W8 = next(iter(SCHEMES))
ONE_SIGN = [np.abs(ROWS), -np.abs(ROWS)]


@pytest.fixture(scope="module", params=["x", "input"])
def baseline(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("subgraphs") / "model.onnx"
    onnx.save(model_proto(), path)
    return request.param, OnnxRuntimeBackend().convert(lambda: path, {request.param: ROWS[:1]})


def output(artifact, name, rows):
    return OnnxRuntimeBackend().open(artifact, lambda: None, 1)({name: rows})["y"]


@pytest.mark.parametrize("rows", ONE_SIGN, ids=["then", "else"])
def test_a_file_with_subgraphs_is_a_baseline_whatever_its_input_is_called(baseline, rows):
    name, artifact = baseline
    np.testing.assert_allclose(output(artifact, name, rows), expected(rows), atol=1e-4)


@pytest.mark.parametrize("quantization", SCHEMES, ids=lambda q: f"{q.scheme.name}-{q.bits}")
def test_subgraphs_find_what_they_read_after_quantizing(baseline, quantization):
    name, float_artifact = baseline
    calibration = {name: np.concatenate(ONE_SIGN)} if quantization.calibration else None
    artifact = OnnxRuntimeBackend().quantize(
        lambda: None, float_artifact, quantization, calibration
    )
    model = onnx.load_from_string(artifact.data)
    onnx.checker.check_model(model)
    for rows in ONE_SIGN:
        noise = np.sum((output(artifact, name, rows) - expected(rows)) ** 2)
        assert 0 < noise / np.sum(expected(rows) ** 2) < SCHEMES[quantization]


def test_a_weight_that_a_subgraph_reads_stays_float_and_is_told(baseline):
    _, float_artifact = baseline
    artifact = OnnxRuntimeBackend().quantize(lambda: None, float_artifact, W8, None)
    held = {tensor.name for tensor in onnx.load_from_string(artifact.data).graph.initializer}
    assert held >= {"shared.weight", "shared.weight_1_packed"}
    assert not held & {"stem.weight", "head.weight"}  # nothing else reads them
    assert artifact.facts.notes == ("1 of 3 weight tensors stay float",)


def test_a_name_that_a_subgraph_defines_itself_is_not_renamed():
    reader = helper.make_node("Identity", ["hidden"], ["copy"])
    other = helper.make_graph([reader], "other", [], [value("copy")])
    own = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["hidden"]), reader], "own", [], [value("copy")]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=own, else_branch=other)
    graph = helper.make_graph([node], "graph", [], [value("y")])
    rename_reads(graph, {"hidden": "renamed", "c": "condition"})
    kept, renamed = (graph.node[0].attribute[i].g for i in (0, 1))
    if kept.name != "own":
        kept, renamed = renamed, kept
    assert kept.node[1].input == ["hidden"]
    assert renamed.node[0].input == ["renamed"]
    assert graph.node[0].input == ["condition"]
    assert names_read(graph) == {"condition", "x", "hidden", "renamed", "copy", "y"}


class Conditional(nn.Module):
    """The exporter transposes a stack's weight, so that it is renamed after its module."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, input):  # noqa: A002 - the contract's name
        hidden = self.layer(input)
        return torch.cond(
            input.sum() > 0,
            lambda hidden, input: self.layer(hidden) + input,  # noqa: A006
            lambda hidden, input: hidden * 2 + input,  # noqa: A006
            (hidden, input),
        )


def test_a_module_with_a_condition_is_exported_and_quantized_without_traces_of_this_machine():
    torch.manual_seed(0)
    module = Conditional().eval()
    stack = RNG.normal(size=(4, 3, 8)).astype(np.float32)
    artifact = OnnxRuntimeBackend().convert(lambda: module, {"input": stack[:1]})
    graphs = list(all_graphs(onnx.load_from_string(artifact.data).graph))
    assert len(graphs) == 3
    assert not any(node.metadata_props for graph in graphs for node in graph.node)
    quantized = OnnxRuntimeBackend().quantize(lambda: None, artifact, W8, None)
    for rows in (np.abs(stack), -np.abs(stack)):
        with torch.no_grad():
            wanted = module(torch.from_numpy(rows)).numpy()
        session = ort.InferenceSession(artifact.data)
        np.testing.assert_allclose(session.run(None, {"input": rows})[0], wanted, atol=1e-5)
        found = ort.InferenceSession(quantized.data).run(None, {"input": rows})[0]
        assert 0 < np.sum((found - wanted) ** 2) / np.sum(wanted**2) < 1e-3
