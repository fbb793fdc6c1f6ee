"""Which weights an ONNX graph has, by kind of layer, and which of them a scheme has quantized."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import TensorProto

from qb_cluster.contracts import Quantization
from qb_cluster.contracts.coverage import Coverage, LayerKind, coverage
from qb_cluster.quantization.layer_names import Names
from qb_onnxruntime.graph import Layer, layers
from qb_onnxruntime.naming import RECURRENT, kept_names, layer_name

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
    """

    tensor: str
    names: Names
    kind: LayerKind
    size: int

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
        yield Weight(layer.tensor, names, kind_of(layer), layer.weight.size)
    kind: LayerKind
    floats = {
        tensor.name: onnx.numpy_helper.to_array(tensor).size
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    kept = kept_names(model)
    for node in model.graph.node:
        read: list[str] = []
        kind = "embedding"
        if node.op_type == "Gather":
            read = list(node.input[:1])
        elif node.op_type in RECURRENT:
            read, kind = list(node.input[1:3]), "recurrent"
        for name in read:
            if name in floats:
                names = kept.get(name) or (layer_name(name, node),)
                yield Weight(name, names, kind, floats[name])


def kind_of(layer: Layer) -> LayerKind:
    """Give the kind of a layer."""
    return _KINDS[layer.node.op_type]


def coverage_of(
    float_model: onnx.ModelProto, model: onnx.ModelProto, quantization: Quantization
) -> Coverage:
    """Tell what a scheme covers of a model, and how much of it is no float any more.

    Args:
        float_model: as it was.
        model: what became of it.
        quantization: names kinds of layers, and layers that stay float.
    """
    floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    return coverage(
        (weight.kind, weight.size, weight.tensor not in floats)
        for weight in weights(float_model)
        if is_covered(weight.kind, weight.layer, quantization)
    )


def is_covered(kind: LayerKind, layer: str, quantization: Quantization) -> bool:
    """Tell whether a scheme covers a layer."""
    return kind in quantization.scheme.weights and quantization.layer_bits(layer) is not None
