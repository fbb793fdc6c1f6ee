"""Simulated quantization of a float ``.tflite``: any scheme, any bit-width, computed in float.

Weights are rounded once and stored as float32; activations are rounded by float operators around
the layers. What comes of it is a float file, and runs like any other.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays, Bits, LoadModel, Quantization
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_litert.graph import (
    LAYER_KINDS,
    Operation,
    Place,
    input_of,
    is_constant,
    operations,
    operator_kinds,
    read_model,
    weights_of,
    written,
)
from qb_tflite.biases import flatten_biases
from qb_tflite.layers import bits_of_weights
from qb_tflite.ranges import Watched, qparams_of
from qb_tflite.rounding import Cast, Dynamic, Editor, Rounding, Static
from qb_tflite.support import SCOPE

_CLIPS: Final = ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")
"""Operators that belong to the layer whose output they alone read."""
_TORCH_AXES: Final = {
    "CONV_2D": (0, 3, 1, 2),
    "DEPTHWISE_CONV_2D": (3, 0, 1, 2),
    "TRANSPOSE_CONV": (0, 3, 1, 2),
    "CONV_3D": (4, 3, 0, 1, 2),
}
"""Axes of weights in torch's order: output channels, inputs, then space. Groups follow it."""

End = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Layer:
    """An operation whose weights, and activations if the scheme says so, are rounded.

    Attributes:
        operation: what multiplies.
        bits: its own.
        weights: number of the buffer that holds its weights. Layers that share it are tied, or
            are steps of a recurrent one: they are rounded alike, over one range.
        end: the operator that puts out the layer's output: itself, or the bias or ReLU that
            follows.
    """

    operation: Operation
    bits: Bits
    weights: int
    end: Place


@dataclass(frozen=True, slots=True)
class Simulation:
    """All that can be rounded in a file.

    Attributes:
        data: the float file.
        layers: in the order they run; those that the scheme leaves float are not among them.
        kept_float: names of the weights that the scheme leaves float.
        weights: rounded ones by the number of their buffer, in the file's order of axes.
        roundings: of the inputs and outputs of layers, by the number of their weights' buffer.
    """

    data: bytes
    layers: tuple[Layer, ...]
    kept_float: frozenset[str]
    weights: Mapping[int, NDArray[np.float32]]
    roundings: Mapping[tuple[End, int], Rounding]

    def left_out(self) -> int:
        """Count the layers whose inputs calibration never met."""
        multiplying = {layer.weights for layer in self.layers if multiplies(layer)}
        return sum(("input", weights) not in self.roundings for weights in multiplying)


def multiplies(layer: Layer) -> bool:
    """Tell whether a layer has an input to round: all but look-ups do."""
    return LAYER_KINDS[layer.operation.kind] != "embedding"


def simulate(
    data: bytes, model: LoadModel, quantization: Quantization, calibration: Arrays | None
) -> Simulation:
    """Find what a scheme rounds in a float file, and how.

    Args:
        data: what ``convert`` gave.
        model: loaded only to know the names of its layers, when the scheme asks for some.
        quantization: simulated, whatever its ``execution`` says.
        calibration: examples along axis 0, for static activations only.

    Raises:
        PlugInError: the scheme's own weight quantizer returns something else than weights, or a
            layer pattern matches nothing.
        UnsupportedError: see ``layer_bits``.
        NonFiniteError: weights, or activations of calibration, are NaN or infinite.
        DataError: there are no calibration examples.
    """
    graph = read_model(data)
    if flatten_biases(graph):
        data = written(graph)
    weighted = [operation for operation in operations(graph) if operation.weights]
    bits = bits_of_weights(weighted, model, quantization)
    layers = tuple(
        Layer(operation, own, weights_of(graph, operation).buffer, _end(graph, operation.place))
        for operation in weighted
        if (own := bits[operation.weights]) and operation.values is not None
    )
    # Ranges are those of the float model.
    roundings = _roundings(data, graph, layers, quantization, calibration)
    kept = frozenset(name for name, own in bits.items() if own is None)
    return Simulation(data, layers, kept, _rounded_weights(layers, quantization), roundings)


def write(simulation: Simulation, chosen: Collection[int] | None = None) -> bytes:
    """Write the file in which layers are rounded.

    Args:
        simulation: what can be rounded.
        chosen: numbers of the weights' buffers of those that are; all of them unless given.
    """
    from ai_edge_litert.schema_py_generated import BufferT

    model = read_model(simulation.data)
    layers = [layer for layer in simulation.layers if chosen is None or layer.weights in chosen]
    buffers: dict[int, int] = {}
    for layer in layers:
        tensor = weights_of(model, layer.operation)
        if layer.weights not in buffers and tensor.buffer == layer.weights:
            buffer = BufferT()
            buffer.data = np.frombuffer(simulation.weights[layer.weights].tobytes(), np.uint8)
            buffers[layer.weights] = len(model.buffers)
            model.buffers.append(buffer)
        tensor.buffer = buffers[layer.weights]
    still_read = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for number in buffers.keys() - still_read:
        model.buffers[number].data = None
    for number, graph in enumerate(model.subgraphs):
        own = [layer for layer in layers if layer.operation.place[0] == number]
        _add_roundings(model, graph, own, simulation.roundings)
    return written(model)


def _end(model: Any, place: Place) -> Place:
    """Give the operator that puts out a layer's output: what alone reads it may belong to it."""
    number, index = place
    graph = model.subgraphs[number]
    kinds = operator_kinds(model, graph)
    if (reader := _only_reader(graph, index)) is not None and kinds[reader] == "ADD":
        index = reader if _adds_bias(model, graph, index, reader) else index
    if (reader := _only_reader(graph, index)) is not None and kinds[reader] in _CLIPS:
        index = reader
    return number, index


def _only_reader(graph: Any, index: int) -> int | None:
    """Give the operator that alone reads another's output; ``None`` where there is no such."""
    output = int(graph.operators[index].outputs[0])
    if output in graph.outputs:
        return None
    readers = [number for number, other in enumerate(graph.operators) if output in other.inputs]
    return readers[0] if len(readers) == 1 else None


def _adds_bias(model: Any, graph: Any, index: int, reader: int) -> bool:
    """Tell whether an ADD adds a number for each channel, which come last, to a layer's output."""
    output = int(graph.operators[index].outputs[0])
    others = [
        graph.tensors[number] for number in graph.operators[reader].inputs if number != output
    ]
    channels = int(graph.tensors[output].shape[-1])
    return any(
        is_constant(model, other)
        and other.shape is not None
        and len(other.shape) > 0
        and math.prod(map(int, other.shape)) == int(other.shape[-1]) == channels
        for other in others
    )


def _rounded_weights(
    layers: tuple[Layer, ...], quantization: Quantization
) -> dict[int, NDArray[np.float32]]:
    rounded: dict[int, NDArray[np.float32]] = {}
    for layer in layers:
        if layer.weights in rounded:
            continue
        operation = layer.operation
        assert operation.values is not None
        rows = rows_first(operation)
        found = quantize_dequantize_weights(
            rows, quantization.scheme, layer.bits, name=f"weights '{operation.weights}'"
        )
        back = np.transpose(found, np.argsort(_axes(operation)))
        rounded[layer.weights] = np.ascontiguousarray(back, np.float32)
    return rounded


def rows_first(operation: Operation) -> NDArray[np.float32]:
    """Give an operation's float weights in torch's order of axes, output channels first."""
    assert operation.values is not None
    return np.ascontiguousarray(np.transpose(operation.values, _axes(operation)))


def _axes(operation: Operation) -> tuple[int, ...]:
    if operation.kind in _TORCH_AXES:
        return _TORCH_AXES[operation.kind]
    channel = operation.channel_axis
    return (channel, *(axis for axis in range(len(operation.shape)) if axis != channel))


def _roundings(
    data: bytes,
    graph: Any,
    layers: tuple[Layer, ...],
    quantization: Quantization,
    calibration: Arrays | None,
) -> dict[tuple[End, int], Rounding]:
    """Give how activations are rounded; nothing where they stay float."""
    scheme = quantization.scheme
    multiplying = [layer for layer in layers if multiplies(layer)]
    if scheme.number in {"fp16", "bf16"}:
        cast = Cast(scheme.number)
        return {("input", layer.weights): cast for layer in multiplying}
    if scheme.activations == "none":
        return {}
    if scheme.activations == "dynamic":
        return {
            ("input", layer.weights): Dynamic(
                layer.bits.activation or 0, scheme.symmetric_activations
            )
            for layer in multiplying
        }
    watched: dict[tuple[End, int], Watched] = {}
    for layer in multiplying:
        if layer.operation.place[0] != 0:  # a branch or a loop, which cannot be looked into
            continue
        width = layer.bits.activation or 0
        tensors: dict[End, int] = {"input": _read(graph, layer)}
        if scheme.scope_or(SCOPE) == "layers":
            tensors["output"] = _put_out(graph, layer)
        for end, tensor in tensors.items():
            key = end, layer.weights
            seen = watched.get(key, Watched((), width))
            watched[key] = Watched((*seen.tensors, tensor), width)
    found = qparams_of(data, watched, quantization, calibration)
    return {
        key: Static(scale, zero_point, watched[key].bits)
        for key, (scale, zero_point) in found.items()
    }


def _read(model: Any, layer: Layer) -> int:
    """Give the number of the tensor that a layer multiplies by its weights."""
    return input_of(model, layer.operation)


def _put_out(model: Any, layer: Layer) -> int:
    graph, index = layer.end
    return int(model.subgraphs[graph].operators[index].outputs[0])


def _add_roundings(
    model: Any, graph: Any, layers: list[Layer], roundings: Mapping[tuple[End, int], Rounding]
) -> None:
    """Put operators that round before and behind the layers of a subgraph."""
    editor = Editor(model, graph)
    starts = {layer.operation.place[1]: layer for layer in layers}
    ends = {layer.end[1]: layer for layer in layers}
    rounded: dict[tuple[int, Rounding], int] = {}
    operators = []
    for index, operator in enumerate(graph.operators):
        if index in starts:
            layer = starts[index]
            rounding = roundings.get(("input", layer.weights))
            if multiplies(layer) and rounding is not None:
                source = _read(model, layer)
                if (source, rounding) not in rounded:
                    target = editor.new_tensor_like(source, "rounded")
                    editor.round(source, target, rounding)
                    rounded[source, rounding] = target
                # Weights are read at another place.
                inputs = np.array(operator.inputs, np.int32)
                inputs[inputs == source] = rounded[source, rounding]
                operator.inputs = inputs
        operators += editor.taken()
        operators.append(operator)
        if index in ends:
            rounding = roundings.get(("output", ends[index].weights))
            if rounding is not None:
                target = int(operator.outputs[0])
                exact = editor.new_tensor_like(target, "exact")
                operator.outputs = np.array([exact, *operator.outputs[1:]], np.int32)
                # Whoever reads the output reads what is rounded, under its name.
                editor.round(exact, target, rounding)
        operators += editor.taken()
    graph.operators = operators
