"""Where a float graph's activations are rounded, marked by nodes that do nothing yet."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import NodeProto, TensorProto, helper

from qb_onnxruntime.graph import Layer, attributes, layers
from qb_onnxruntime.subgraphs import names_read, subgraphs

_MARK: Final = "qb_rounded"


@dataclass(frozen=True, slots=True)
class Place:
    """An activation that a layer reads or gives.

    Attributes:
        node: name of the Identity node that stands there, in the graph or in a body.
        weight: name of the layer's weight.
        observed: the tensor of the graph that holds all that passes there.
    """

    node: str
    weight: str
    observed: str


def mark(model: onnx.ModelProto, chosen: Collection[str], *, outputs: bool) -> list[Place]:
    """Put an Identity node in front of layers, and behind them, in place; nodes are sorted later.

    Args:
        model: a float model.
        chosen: weights of the layers.
        outputs: whether outputs are marked too, after all that belongs to the layer.
    """
    found = [layer for layer in layers(model) if layer.tensor in chosen]
    ends = _Ends(model)
    places = [
        Place(f"{_MARK}_output_of_{layer.output}", layer.tensor, ends.of(layer))
        for layer in found
        if outputs
    ]
    makers = {name: node for node in model.graph.node for name in node.output}
    for place in places:
        exact = f"{place.observed}_before_rounding"
        maker = makers[place.observed]
        maker.output[list(maker.output).index(place.observed)] = exact
        model.graph.node.append(identity(place.node, exact, place.observed))
    for layer in found:
        name = f"{_MARK}_input_of_{layer.output}"
        places.append(Place(name, layer.tensor, layer.node.input[0]))
        model.graph.node.append(identity(name, layer.node.input[0], name))
        layer.node.input[0] = name
    return places


def identity(name: str, read: str, made: str) -> NodeProto:
    """Make a node that marks a place."""
    return helper.make_node("Identity", [read], [made], name)


class _Ends:
    """Where the outputs of layers are, once what runtimes fuse into them has been.

    That is a bias, a batch normalization and a clip such as ReLU, each where it alone reads what
    comes before it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._shared = {output.name for output in graph.output}.union(
            *(names_read(inner) for node in graph.node for inner in subgraphs(node))
        )

    def of(self, layer: Layer) -> str:
        """Name the tensor that is a layer's output."""
        end = layer.output
        for belongs in (self._is_bias, self._is_norm, self._is_clip):
            reader = self._only_reader(end)
            if reader is not None and belongs(layer, reader):
                end = str(reader.output[0])
        return end

    def _only_reader(self, name: str) -> NodeProto | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._shared else None

    def _is_bias(self, layer: Layer, node: NodeProto) -> bool:
        """Tell whether a node adds one stored number to each output channel."""
        if node.op_type != "Add" or layer.bias:
            return False
        added = next((self._constants[n] for n in node.input if n in self._constants), None)
        if added is None:
            return False
        channels = layer.rows.shape[0] * _groups(layer)
        shape = [int(size) for size in added.dims]
        return math.prod(shape) == channels and sum(size > 1 for size in shape) <= 1

    def _is_norm(self, _: Layer, node: NodeProto) -> bool:
        return str(node.op_type) == "BatchNormalization"

    def _is_clip(self, _: Layer, node: NodeProto) -> bool:
        if node.op_type == "Clip":
            return all(name in self._constants for name in node.input[1:] if name)
        return str(node.op_type) == "Relu"


def _groups(layer: Layer) -> int:
    if layer.node.op_type != "ConvTranspose":
        return 1
    return int(attributes(layer.node).get("group", 1))
