"""Layers that compute in float with a weight that the file stores in fewer bits."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qb_onnxruntime.graph import Layer, Part


def dequantizing(
    layer: Layer,
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    zero_point: NDArray[Any] | None = None,
    group_size: int | None = None,
) -> Part:
    """Keep the layer's node and feed it ``(codes - zero_point) * scale``.

    onnxruntime computes these nodes once, on loading, but a DequantizeLinear at every call (a
    16 × 32 convolution took 17 µs instead of 11).

    Args:
        layer: what is quantized.
        codes: the stored weight, in the layout and dtype of the file.
        scale: see ``Codes``.
        zero_point: see ``Codes``; the dtype of ``codes``.
        group_size: given when ``scale`` and ``zero_point`` have the shape of ``codes``.
    """
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []

    def constant(what: str, array: NDArray[Any]) -> str:
        tensors.append(numpy_helper.from_array(array, f"{layer.name}_{what}"))
        return f"{layer.name}_{what}"

    def apply(operator: str, *inputs: str, **settings: Any) -> str:
        name = f"{layer.output}_weight_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], **settings))
        return name

    def companion(what: str, values: NDArray[Any]) -> str:
        """Store one value a group, and spread them over the weights."""
        if group_size is not None:
            values = _per_group(values, layer, group_size)
        name = constant(what, values)
        if values.dtype != np.float32:
            name = apply("Cast", name, to=TensorProto.FLOAT)
        if group_size is None:
            return name
        rows = layer.rows
        outputs, groups = values.shape[:2]
        name = apply("Expand", name, constant("groups", np.array([outputs, groups, group_size])))
        name = apply("Reshape", name, constant("filled", np.array([outputs, -1])))
        bounds = {"start": [0], "inputs": [rows.size // len(rows)], "along": [1]}
        name = apply("Slice", name, *(constant(k, np.array(v)) for k, v in bounds.items()))
        name = apply("Reshape", name, constant("rows", np.array(rows.shape)))
        order = list(range(1, rows.ndim))
        order.insert(layer.axis, 0)
        return apply("Transpose", name, perm=order)

    weight = apply("Cast", constant("codes", codes), to=TensorProto.FLOAT)
    if zero_point is not None:
        weight = apply("Sub", weight, companion("zero_point", zero_point))
    weight = apply("Mul", weight, companion("scale", scale))
    node = onnx.NodeProto()
    node.CopyFrom(layer.node)
    node.input[1] = weight
    return Part([*nodes, node], tensors)


def _per_group(values: NDArray[Any], layer: Layer, group_size: int) -> NDArray[Any]:
    """Give one value a group, (outputs, groups, 1), of one a weight in the layout of the file."""
    rows = np.moveaxis(values, layer.axis, 0)
    return np.ascontiguousarray(rows.reshape(len(rows), -1)[:, ::group_size, None])
