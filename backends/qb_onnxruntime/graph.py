"""ONNX graphs: which nodes hold weights, and how integers are stored in a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qb_cluster.quantization.affine import quantize_symmetric

STORED_TYPE: dict[int, int] = {
    2: TensorProto.INT2,
    4: TensorProto.INT4,
    8: TensorProto.INT8,
    16: TensorProto.INT16,
}
OPSET_OF_2_BITS = 25


@dataclass(frozen=True, slots=True)
class Layer:
    """A node whose weight is stored in the file.

    Attributes:
        node: a Conv, ConvTranspose, MatMul or Gemm (with alpha = beta = 1 and plain inputs).
        weight: float32, in the layout of the file.
        axis: the axis of output channels.
    """

    node: NodeProto
    weight: NDArray[np.float32]
    axis: int

    @property
    def name(self) -> str:
        """Name of the weight as this layer lays it out: layers that share both share tensors."""
        return f"{self.node.input[1]}_{self.axis}"

    @property
    def output(self) -> str:
        """Name of the output, unique in the graph."""
        return str(self.node.output[0])

    @property
    def bias(self) -> str:
        """Name of the bias, empty where there is none."""
        return str(self.node.input[2]) if len(self.node.input) > 2 else ""

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies by a matrix, so that ``matrix`` makes sense."""
        return self.node.op_type in ("MatMul", "Gemm")

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The weight of a linear layer as (outputs, inputs)."""
        return np.moveaxis(self.weight, self.axis, 0)

    def quantized(
        self, bits: int, *, per_channel: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Give the weight's integers and their scale, which broadcasts against them."""
        return quantize_symmetric(self.weight, bits, self.axis if per_channel else None)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Give a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def layers(model: onnx.ModelProto) -> list[Layer]:
    """Give the nodes that hold weights, in graph order."""
    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    found = (_layer(node, weights) for node in model.graph.node)
    return [layer for layer in found if layer is not None]


def _layer(node: NodeProto, weights: dict[str, TensorProto]) -> Layer | None:
    if len(node.input) < 2 or node.input[1] not in weights:
        return None
    tensor = weights[node.input[1]]
    match node.op_type:
        case "Conv":
            axis = 0
        case "ConvTranspose" | "MatMul":
            axis = 1
        case "Gemm":
            given = attributes(node)
            if given.get("transA", 0) or {given.get("alpha", 1), given.get("beta", 1)} != {1}:
                return None
            axis = 0 if given.get("transB", 0) else 1
        case _:
            return None
    if node.op_type == "MatMul" and len(tensor.dims) != 2:
        return None  # a stack of matrices
    return Layer(node, numpy_helper.to_array(tensor), axis)


@dataclass(frozen=True, slots=True)
class Part:
    """What takes the place of a layer.

    Attributes:
        nodes: the last one gives the layer's output.
        tensors: what they read that the file does not hold yet.
    """

    nodes: Sequence[NodeProto]
    tensors: Sequence[TensorProto]


def replace_layers(model: onnx.ModelProto, replace: Callable[[Layer], Part | None]) -> None:
    """Replace layers in place (those for which ``replace`` gives a part) and drop their weights."""
    by_output = {layer.output: layer for layer in layers(model)}
    graph = model.graph
    nodes: list[NodeProto] = []
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        layer = by_output.get(node.output[0])
        part = replace(layer) if layer is not None else None
        if part is None:
            nodes.append(node)
        else:
            nodes.extend(part.nodes)
            # Layers that share a weight give the same tensors once more.
            tensors |= {tensor.name: tensor for tensor in part.tensors}
    used = {name for node in nodes for name in node.input}
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [tensor for name, tensor in tensors.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def load(data: bytes, weight_bits: int) -> onnx.ModelProto:
    """Read a file, raised to the operator set that knows integers of this width."""
    model = onnx.load_from_string(data)
    if weight_bits == 2:
        model = onnx.version_converter.convert_version(model, OPSET_OF_2_BITS)
        model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return model


def stored(name: str, integers: NDArray[np.int32], bits: int) -> TensorProto:
    """Pack integers of ``bits`` bits (2, 4, 8 or 16) into a tensor, low bits first."""
    dtype = helper.tensor_dtype_to_np_dtype(STORED_TYPE[bits])
    return numpy_helper.from_array(integers.astype(dtype), name)
