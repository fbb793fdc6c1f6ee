"""Which weights an ONNX graph has, by kind of layer, and which of them a scheme has quantized."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import TensorProto

from qb_cluster.contracts import Bits, Quantization
from qb_cluster.contracts.coverage import Coverage, LayerKind, coverage
from qb_cluster.errors import PlugInError
from qb_cluster.quantization.layer_names import Names
from qb_cluster.quantization.layer_patterns import bits_of, check_layer_patterns
from qb_onnxruntime.graph import Layer, layers
from qb_onnxruntime.naming import RECURRENT, kept_names, layer_name, model_layers

_KINDS: Final[dict[str, LayerKind]] = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "MatMul": "linear",
    "Gemm": "linear",
}


@dataclass(frozen=True, slots=True)
class Weight:
    """A stored weight.

    Attributes:
        tensor: its name in the file.
        names: of the layers of the model that it belongs to, see ``naming``.
        kind: of the layer.
        size: how many numbers it holds.
        axis: the axis of output channels: the rows of an embedding, the gates of a recurrent
            layer, whose axis 0 counts directions.
    """

    tensor: str
    names: Names
    kind: LayerKind
    size: int
    axis: int

    @property
    def layer(self) -> str:
        """Name of the layer; the first where several have one weight."""
        return self.names[0]


def weights(model: onnx.ModelProto) -> list[Weight]:
    """Give the stored float weights of a graph, each once, in graph order."""
    return list({weight.tensor: weight for weight in _weights(model)}.values())


def _weights(model: onnx.ModelProto) -> Iterator[Weight]:
    for layer in layers(model):
        names = layer.names or (layer.module,)
        yield Weight(layer.tensor, names, kind_of(layer), layer.weight.size, layer.axis)
    kind: LayerKind
    floats = {
        tensor.name: onnx.numpy_helper.to_array(tensor).size
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    kept = kept_names(model)
    for node in model.graph.node:
        read: list[str] = []
        kind, axis = "embedding", 0
        if node.op_type == "Gather":
            read = list(node.input[:1])
        elif node.op_type in RECURRENT:
            read, kind, axis = list(node.input[1:3]), "recurrent", 1
        for name in read:
            if name in floats:
                names = kept.get(name) or (layer_name(name, node),)
                yield Weight(name, names, kind, floats[name], axis)


def kind_of(layer: Layer) -> LayerKind:
    """Give the kind of a layer."""
    return _KINDS[layer.node.op_type]


def covered(model: onnx.ModelProto, quantization: Quantization) -> dict[Weight, Bits]:
    """Give the weights that a scheme covers, and the bits that it gives them.

    Raises:
        PlugInError: a pattern of the scheme's ``layers`` matches nothing, or all stay float.
        UnsupportedError: layers that share a weight are to have different bits.
    """
    stored = weights(model)
    # A layer that was folded into a constant is none of the file's any more, and no mistake.
    named = [name for weight in stored for name in weight.names]
    check_layer_patterns(quantization.scheme, [*named, *model_layers(model)])
    asked = {weight: bits_of(weight.names, quantization) for weight in stored}
    found = {
        weight: bits
        for weight, bits in asked.items()
        if weight.kind in quantization.scheme.weights and bits is not None
    }
    if not found:
        raise PlugInError(
            f"the layers of scheme '{quantization.scheme.name}' leave all of this model float; "
            "leave the cell out, the baseline is the same"
        )
    return found


def coverage_of(
    float_model: onnx.ModelProto, floats: Container[str], quantization: Quantization
) -> Coverage:
    """Tell what a scheme covers of a model, and how much of it is no float any more.

    Args:
        float_model: as it was.
        floats: the tensors that stayed as they were.
        quantization: names kinds of layers, and layers that stay float.
    """
    return coverage(
        (weight.kind, weight.size, weight.tensor not in floats)
        for weight in weights(float_model)
        if is_covered(weight.kind, weight.layer, quantization)
    )


def is_covered(kind: LayerKind, layer: str, quantization: Quantization) -> bool:
    """Tell whether a scheme covers a layer."""
    return kind in quantization.scheme.weights and quantization.layer_bits(layer) is not None
