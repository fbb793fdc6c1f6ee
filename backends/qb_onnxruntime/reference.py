"""An ONNX artifact by reference arithmetic: its fast kernels are held against this."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qb_onnxruntime.graph import attributes
from qb_onnxruntime.runtime import Session, session_options

_FLOAT_OF = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def open_reference(data: bytes, threads: int) -> Session:
    """Open an artifact so that it computes what it says, operator by operator, in float32.

    Nothing is fused: quantize/dequantize pairs round floats between float kernels. Products of
    integers are those of the same integers as floats, whose sums are exact up to 2²⁴; weights that
    MatMulNBits would unpack as it multiplies are unpacked before.

    Args:
        data: an artifact of this backend.
        threads: that share the work of one operator.

    Raises:
        CellError: the runtime cannot read it.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type in _FLOAT_OF:
            nodes += _float_product(node)
        elif node.op_type == "MatMulNBits":
            weight = numpy_helper.from_array(_unpacked(node, stored), f"{node.output[0]}_unpacked")
            graph.initializer.append(weight)
            nodes += _with_bias(node, weight.name)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return Session(model.SerializeToString(), threads, options)


def _float_product(node: NodeProto) -> Iterator[NodeProto]:
    """Multiply floats that are the integers less their zero points."""
    made, factors = node.output[0], []
    for number, name in enumerate(node.input[:2]):
        zero_point = node.input[number + 2] if len(node.input) > number + 2 else ""
        factor = f"{made}_factor_{number}"
        yield helper.make_node("Cast", [name], [f"{factor}_codes"], to=TensorProto.FLOAT)
        if not zero_point:
            yield helper.make_node("Identity", [f"{factor}_codes"], [factor])
        else:
            yield helper.make_node("Cast", [zero_point], [f"{factor}_zero"], to=TensorProto.FLOAT)
            yield helper.make_node("Sub", [f"{factor}_codes", f"{factor}_zero"], [factor])
        factors.append(factor)
    yield helper.make_node(_FLOAT_OF[node.op_type], factors, [made], node.name, **attributes(node))


def _with_bias(node: NodeProto, weight: str) -> Iterator[NodeProto]:
    bias = node.input[5] if len(node.input) > 5 else ""
    product = f"{node.output[0]}_product" if bias else node.output[0]
    yield helper.make_node("MatMul", [node.input[0], weight], [product], node.name)
    if bias:
        yield helper.make_node("Add", [product, bias], list(node.output))


def _unpacked(node: NodeProto, stored: dict[str, TensorProto]) -> NDArray[np.float32]:
    """Give the float weight (inputs, outputs) that MatMulNBits multiplies with."""
    settings = attributes(node)
    bits, block, inputs = settings["bits"], settings["block_size"], settings["K"]
    packed, scale = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
    codes = unpack(packed.reshape(len(packed), -1), bits).astype(np.float32)
    scales = scale.reshape(len(packed), -1)
    zero: NDArray[Any] = np.full_like(scales, 2 ** (bits - 1))
    if len(node.input) > 3 and node.input[3]:
        rows = numpy_helper.to_array(stored[node.input[3]]).reshape(len(packed), -1)
        zero = unpack(rows, bits)[:, : scales.shape[1]].astype(np.float32)
    per_weight = (np.repeat(values, block, axis=1) for values in (scales, zero))
    scales, zero = per_weight
    weight: NDArray[np.float32] = ((codes[:, : zero.shape[1]] - zero) * scales)[:, :inputs]
    return np.ascontiguousarray(weight.T.astype(np.float32))


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Undo ``weight_only.pack``: rows of bytes to rows of codes, low bits first."""
    shifts = (bits * np.arange(8 // bits)).astype(np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)
