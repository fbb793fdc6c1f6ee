"""ONNX graphs: which nodes hold weights, and how integers are stored in a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.errors import UnsupportedError
from qb_cluster.quantization.layer_names import Names
from qb_cluster.quantization.weights import quantize_weights
from qb_onnxruntime.naming import kept_names, layer_name
from qb_onnxruntime.reason import reason
from qb_onnxruntime.subgraphs import names_read

OPSET = 21
"""The first with 4- and 16-bit integers in DequantizeLinear."""

OPSET_OF_2_BITS = 25
STORED_TYPE: dict[int, int] = {
    2: TensorProto.INT2,
    4: TensorProto.INT4,
    8: TensorProto.INT8,
    16: TensorProto.INT16,
}
_WEIGHT = "weight"
Chosen = Mapping[str, Bits]
"""Bits of the layers to quantize, by the layer's output. All others stay float."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight in integers: ``(integers - zero_point) * scale`` gives it back.

    Attributes:
        integers: int32 in -2^(bits-1) … 2^(bits-1) - 1, in the layout of the file.
        scale: float32, broadcastable against ``integers``; in their full shape per group.
        zero_point: int32 like ``scale``; ``None`` for symmetric schemes.
    """

    integers: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A node whose weight is stored in the file.

    Attributes:
        node: a Conv, ConvTranspose, MatMul or Gemm (with alpha = beta = 1 and plain inputs).
        weight: float32, in the layout of the file.
        axis: the axis of output channels.
        names: of the layers of the model that it is; empty where the file does not say.
    """

    node: NodeProto
    weight: NDArray[np.float32]
    axis: int
    names: Names = ()

    @property
    def tensor(self) -> str:
        """Name of the weight."""
        return str(self.node.input[1])

    @property
    def module(self) -> str:
        """Name of the layer in the model; the first where several have one weight."""
        return self.names[0] if self.names else layer_name(self.tensor, self.node)

    @property
    def name(self) -> str:
        """Name of the weight as this layer lays it out: layers that share both share tensors."""
        return f"{self.tensor}_{self.axis}"

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
        """Whether it multiplies by a matrix."""
        return self.node.op_type in ("MatMul", "Gemm")

    @property
    def rows(self) -> NDArray[np.float32]:
        """The weight with output channels on axis 0."""
        return np.moveaxis(self.weight, self.axis, 0)

    def codes(self, scheme: Scheme, bits: Bits) -> Codes:
        """Quantize the weight as the scheme says.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        found = quantize_weights(self.rows, scheme, bits, name=self.module or _WEIGHT)
        # Kernels like signed weights best, so what is affine moves down by half its levels.
        middle = 0 if scheme.symmetric else 2 ** (bits.weight - 1)
        return Codes(
            np.moveaxis(found.integers - middle, 0, self.axis),
            np.moveaxis(found.scale, 0, self.axis),
            None if scheme.symmetric else np.moveaxis(found.zero_point - middle, 0, self.axis),
        )


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
    names = kept_names(model)
    found = (_layer(node, weights, names) for node in model.graph.node)
    return [layer for layer in found if layer is not None]


def _layer(
    node: NodeProto, weights: Mapping[str, TensorProto], names: Mapping[str, Names]
) -> Layer | None:
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
    return Layer(node, numpy_helper.to_array(tensor), axis, names.get(tensor.name, ()))


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
    """Replace layers in place (those for which ``replace`` gives a part) and drop their weights.

    A weight stays where something else reads it, be it in a subgraph.
    """
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
    del graph.node[:]
    graph.node.extend(nodes)
    used = names_read(graph)
    kept = [tensor for name, tensor in tensors.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def unshare_biases(model: onnx.ModelProto) -> None:
    """Give every layer a bias of its own, in place.

    onnxruntime's static quantizer does that too, but numbers the copies (``{bias}0``,
    ``{bias}1``, …), which can be names of other tensors: TensorFlow numbers its layers so.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    seen = set()
    for layer in layers(model):
        if layer.bias in seen:
            copy = model.graph.initializer.add()
            copy.CopyFrom(tensors[layer.bias])
            copy.name = f"{layer.bias}_of_{layer.output}"
            layer.node.input[2] = copy.name
        elif layer.bias in tensors:
            seen.add(layer.bias)


def load(data: bytes, bits: Sequence[int]) -> onnx.ModelProto:
    """Read a float file, raised to the operator set that knows integers of these widths.

    Raises:
        UnsupportedError: it cannot be raised.
    """
    return raised(onnx.load_from_string(data), OPSET_OF_2_BITS if 2 in bits else OPSET)


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Give the model in this operator set, or as it is if its own is newer.

    Raises:
        UnsupportedError: an operator in it has no conversion.
    """
    given = next((entry.version for entry in model.opset_import if not entry.domain), 1)
    if given >= opset:
        return model
    kept = {entry.key: entry.value for entry in model.metadata_props}
    try:
        model = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # whatever the converter meets
        raise UnsupportedError(
            f"onnx cannot raise this model from operator set {given} to {opset}, which has the "
            f"integer types ({reason(error)}); export it anew with opset_version={opset}"
        ) from error
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)
    helper.set_model_props(model, kept)  # the converter drops them
    return model


def stored_dtype(bits: int) -> np.dtype[Any]:
    """Give the signed integer type of ``bits`` bits (2, 4, 8 or 16), packed in files."""
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(STORED_TYPE[bits])
    return dtype


def stored(name: str, integers: NDArray[np.int32], bits: int) -> TensorProto:
    """Pack integers of ``bits`` bits (2, 4, 8 or 16) into a tensor, low bits first."""
    return numpy_helper.from_array(integers.astype(stored_dtype(bits)), name)
