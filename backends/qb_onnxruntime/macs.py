"""Which multiply-accumulates run in integers, read from the graph that a session really runs."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto

from qb_cluster.contracts import Quantization
from qb_onnxruntime.graph import attributes, layers
from qb_onnxruntime.runtime import open_session, session_options

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER = (
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
INT8_LEVEL = 4
"""The accuracy level at which MatMulNBits computes in int8."""


def arithmetic(
    data: bytes, float_model: onnx.ModelProto, quantization: Quantization
) -> tuple[float | None, tuple[str, ...]]:
    """Give the share of integer multiply-accumulates, and what fell back to float.

    Sessions replace and fuse nodes but keep their names, so a product of the float model runs
    in integers exactly if an integer node has its name.

    Returns:
        The share of the multiply-accumulates of convolutions and matrix products, for one
        example; ``None`` where the float file does not fix the shapes. And the kinds of those
        that the scheme covers and that stayed float, sorted: computed in float or, where
        activations are float anyway, with float weights.
    """
    integer = {node.name for node in _optimized(data).node if _is_integer(node)}
    products = [node for node in float_model.graph.node if node.op_type in PRODUCTS]
    shapes = _shapes(float_model)
    macs = {node.name: _macs(node, shapes) for node in products}
    total = sum(macs.values())
    share = sum(macs[name] for name in macs.keys() & integer) / total if total else 0.0

    weights = _float_tensors(float_model)
    left = {
        layer.output
        for layer in layers(float_model)
        if quantization.layer_bits(layer.module) is None
    }
    still_float = _float_tensors(onnx.load_from_string(data))
    activations = quantization.scheme.activations

    def fell_back(node: NodeProto) -> bool:
        stored = weights.intersection(node.input[:2])
        if activations == "none":
            return bool(stored & still_float)
        return node.name not in integer and (bool(stored) or activations == "static")

    fallback = {n.op_type for n in products if n.output[0] not in left and fell_back(n)}
    return (None if math.isnan(share) else share), tuple(sorted(fallback))


def _optimized(data: bytes) -> onnx.GraphProto:
    """Give the graph after everything a session fuses, but before it lays tensors out anew."""
    with tempfile.TemporaryDirectory(prefix="qb_onnxruntime.") as folder:
        path = Path(folder, "optimized.onnx")
        options = session_options(threads=1)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        open_session(data, options)
        return onnx.load(path).graph


def _is_integer(node: NodeProto) -> bool:
    if node.op_type == "MatMulNBits":
        return bool(attributes(node).get("accuracy_level", 0) == INT8_LEVEL)
    return node.op_type in INTEGER


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    return {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def _shapes(model: onnx.ModelProto) -> Mapping[str, Sequence[float]]:
    """Infer the shape of every tensor for one example, NaN where an axis is not fixed."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    graph = single.graph
    for value in graph.input:
        for batch in value.type.tensor_type.shape.dim[:1]:
            batch.dim_value = 1
    # They tell of any batch, and inference would not touch them.
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes: dict[str, Sequence[float]] = {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else math.nan
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _macs(node: NodeProto, shapes: Mapping[str, Sequence[float]]) -> float:
    """Count multiply-accumulates; NaN where a shape is unknown."""
    first, second, result = (
        shapes.get(name, [math.nan]) for name in (*node.input[:2], node.output[0])
    )
    match node.op_type:
        case "Conv":
            return math.prod(result) * math.prod(second[1:])
        case "ConvTranspose":
            return math.prod(first) * math.prod(second[1:])
        case "Gemm":
            return math.prod(result) * first[0 if attributes(node).get("transA", 0) else -1]
    return math.prod(result) * first[-1]
