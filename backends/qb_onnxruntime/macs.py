"""Which multiply-accumulates run in integers, read from the graph that a session really runs."""

import math
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import AttributeProto, NodeProto, TensorProto

from qb_cluster.contracts import Arrays, Quantization
from qb_onnxruntime.calibration import session_that_gives
from qb_onnxruntime.coverage import is_covered, kind_of
from qb_onnxruntime.graph import attributes, layers
from qb_onnxruntime.naming import RECURRENT
from qb_onnxruntime.runtime import open_session, session_options
from qb_onnxruntime.support import SCOPE

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


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the convolutions and matrix products of one example are computed.

    Attributes:
        integer_share: share of their multiply-accumulates that run in integers; ``None`` where
            the float file does not fix the shapes.
        integer_layer_share: the same over those with a factor that depends on no input;
            ``None`` also where there are none.
        fallback: kinds of those that the scheme covers and that stayed float, sorted: computed
            in float or, where activations are float anyway, with float weights.
    """

    integer_share: float | None
    integer_layer_share: float | None
    fallback: tuple[str, ...]


def arithmetic(data: bytes, float_model: onnx.ModelProto, quantization: Quantization) -> Arithmetic:
    """Tell what runs in integers, and what fell back to float.

    Sessions replace and fuse nodes but keep their names, so a product of the float model runs
    in integers exactly if an integer node has its name.
    """
    integer = {node.name for node in _optimized(data).node if _is_integer(node)}
    products = [node for node in float_model.graph.node if node.op_type in PRODUCTS]
    shapes = _shapes(float_model)
    macs = {node.name: _macs(node, shapes) for node in products}
    constants = _constants(float_model)

    def share(names: Iterable[str]) -> float | None:
        total = sum(macs[name] for name in names)
        found = sum(macs[name] for name in integer.intersection(names)) / total if total else 0.0
        return None if math.isnan(found) else found

    weights = float_tensors(float_model)
    left = _left_float(float_model, quantization)
    covered = [node for node in products if node.output[0] not in left]
    layer_names = {node.name for node in covered if constants.intersection(node.input[:2])}
    still_float = float_tensors(onnx.load_from_string(data))
    activations = quantization.scheme.activations
    covers_all = quantization.scheme.scope_or(SCOPE) == "all"

    def fell_back(node: NodeProto) -> bool:
        stored = weights.intersection(node.input[:2])
        if activations == "none":
            return bool(stored & still_float)
        return node.name not in integer and (bool(stored) or covers_all)

    fallback = {node.op_type for node in covered if fell_back(node)}
    return Arithmetic(
        integer_share=share(macs),
        integer_layer_share=share(layer_names) if layer_names else None,
        fallback=tuple(sorted(fallback)),
    )


def float_products(
    model: onnx.ModelProto, floats: Collection[str], quantization: Quantization
) -> tuple[str, ...]:
    """Name the kinds of products that the scheme covers and whose weights stay float, sorted.

    Args:
        model: the float model.
        floats: stored tensors that stay float.
        quantization: names kinds of layers, and layers that stay float.
    """
    left = _left_float(model, quantization)
    found = {
        node.op_type
        for node in model.graph.node
        if node.op_type in PRODUCTS
        and node.output[0] not in left
        and any(name in floats for name in node.input[:2])
    }
    return tuple(sorted(found))


def _left_float(model: onnx.ModelProto, quantization: Quantization) -> set[str]:
    """Name the outputs of layers that the scheme leaves float."""
    return {
        layer.output
        for layer in layers(model)
        if not is_covered(kind_of(layer), layer.module, quantization)
    }


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


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Name the stored float32 tensors."""
    return {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def _constants(model: onnx.ModelProto) -> set[str]:
    """Give the tensors that depend on no input: stored ones, and what is computed from them."""
    found = {tensor.name for tensor in model.graph.initializer}
    graphs = {AttributeProto.GRAPH, AttributeProto.GRAPHS}  # which read more than their inputs
    for node in model.graph.node:
        read = {name for name in node.input if name}
        has_graph = any(attribute.type in graphs for attribute in node.attribute)
        if node.op_type == "Constant" or (read and read <= found and not has_graph):
            found.update(node.output)
    return found


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


def weight_macs(data: bytes, example: Arrays) -> dict[str, int]:
    """Count what one example multiplies by each stored weight of a layer, by its name.

    Args:
        data: a float file.
        example: one example (axis 0 has length 1), which is run.
    """
    model = onnx.load_from_string(data)
    found = layers(model)
    recurrent = [node for node in model.graph.node if node.op_type in RECURRENT]
    names = {name for layer in found for name in (layer.node.input[0], layer.output)}
    names |= {node.input[0] for node in recurrent}
    asked = sorted(names)
    arrays = session_that_gives(model, asked).run(asked, dict(example)) if asked else []
    shapes: dict[str, Sequence[float]] = {
        name: array.shape for name, array in zip(asked, arrays, strict=True)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    macs: dict[str, int] = {}
    for layer in found:
        macs[layer.tensor] = macs.get(layer.tensor, 0) + int(_macs(layer.node, shapes))
    for node in recurrent:
        steps = math.prod(shapes[node.input[0]][:2])  # of all examples
        for name in node.input[1:3]:
            macs[name] = macs.get(name, 0) + int(steps * math.prod(shapes.get(name, ())))
    return macs
