"""The convolutions, matrix products and look-ups of a ``.tflite``, read from the flatbuffer."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts.coverage import LayerKind

Stored = Literal["float32", "half", "integer"]
Place = tuple[int, int]
"""Number of a subgraph, and of an operator there."""

_WEIGHTS_AT: Final = 1
_ACTIVATIONS_AT: Final = {"TRANSPOSE_CONV": 2}
_CHANNEL_AXES: Final = {
    "CONV_2D": 0,
    "DEPTHWISE_CONV_2D": 3,
    "TRANSPOSE_CONV": 0,
    "FULLY_CONNECTED": 0,
    "EMBEDDING_LOOKUP": 0,
    "CONV_3D": 4,
}
_BATCH_MATMUL: Final = "BATCH_MATMUL"
LAYER_KINDS: Final[dict[str, LayerKind]] = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "conv",
    "CONV_3D": "conv",
    "TRANSPOSE_CONV": "conv_transpose",
    "FULLY_CONNECTED": "linear",
    "BATCH_MATMUL": "linear",
    "EMBEDDING_LOOKUP": "embedding",
}
"""Kinds of layers by what TFLite's schema calls their operations; a converter writes attention and
recurrent layers as the products they are."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that multiplies by weights, or one activation by another.

    Attributes:
        kind: as TFLite's schema calls it, e.g. ``CONV_2D``.
        place: number of its subgraph, and its own among the operators there.
        outputs: names of its output tensors.
        weights: name of the constant tensor that holds its weights (whether or not a DEQUANTIZE
            stands between); empty where it multiplies two activations.
        shape: of the second factor: the weights, or an activation.
        channel_axis: the axis of ``shape`` that runs over output channels.
        values: the weights where they are float32, else ``None``.
        stored: the type of the weights in the file; ``None`` without weights.
        has_weights: one factor, also the first, depends on no input of its graph: a constant
            or computed from constants alone.
        macs: multiply-accumulates for one example.
        activations_are_integer: the first factor comes as integers.
        is_integer: its kernel multiplies integers: both factors come as such, or the weights
            do and the kernel rounds the float activations itself ("dynamic range").
    """

    kind: str
    place: Place
    outputs: tuple[str, ...]
    weights: str
    shape: tuple[int, ...]
    channel_axis: int
    values: NDArray[np.float32] | None
    stored: Stored | None
    has_weights: bool
    macs: int
    activations_are_integer: bool
    is_integer: bool


def read_model(data: bytes) -> Any:
    """Read the flatbuffer into ai-edge-litert's ``ModelT``; buffers keep to the bytes given."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(data)


def operations(model: Any) -> Iterator[Operation]:
    """Give the operations that have weights or multiply activations, of every subgraph."""
    for number, graph in enumerate(model.subgraphs):
        kinds = operator_kinds(model, graph)
        dequantized = {
            operator.outputs[0]: operator.inputs[0]
            for operator, kind in zip(graph.operators, kinds, strict=True)
            if kind == "DEQUANTIZE"
        }
        constants = _constants(model, graph)
        for index, kind in enumerate(kinds):
            if kind in _CHANNEL_AXES or kind == _BATCH_MATMUL:
                yield _operation(model, (number, index), kind, dequantized, constants)


def input_of(model: Any, operation: Operation) -> int:
    """Give the number of the tensor that an operation multiplies by its weights."""
    graph, index = operation.place
    operator = model.subgraphs[graph].operators[index]
    return int(operator.inputs[_ACTIVATIONS_AT.get(operation.kind, 0)])


def weights_of(model: Any, operation: Operation) -> Any:
    """Give the tensor of an operation's float weights."""
    graph, index = operation.place
    number = model.subgraphs[graph].operators[index].inputs[_WEIGHTS_AT]
    return model.subgraphs[graph].tensors[number]


def operator_kinds(model: Any, graph: Any) -> list[str]:
    """Give what the schema calls each operator of a subgraph; nothing for one it does not know."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    # Files from before 2020 have the first field alone; newer ones cap it at 127.
    codes = [max(code.deprecatedBuiltinCode, code.builtinCode) for code in model.operatorCodes]
    return [names.get(codes[operator.opcodeIndex], "") for operator in graph.operators]


def copy_weights(model: Any, operation: Operation, name: str) -> None:
    """Let an operation of a float model read a copy of its weights, in place.

    Args:
        model: as ``read_model`` gives it.
        operation: one of its operations, with weights.
        name: of the copy, which is made unless there is one.
    """
    for graph in model.subgraphs:
        tensors = {tensor.name.decode(): number for number, tensor in enumerate(graph.tensors)}
        for operator in graph.operators:
            outputs = tuple(graph.tensors[index].name.decode() for index in operator.outputs)
            if outputs != operation.outputs:
                continue
            if name not in tensors:
                original = graph.tensors[operator.inputs[_WEIGHTS_AT]]
                tensor, buffer = copy.copy(original), copy.copy(model.buffers[original.buffer])
                tensor.name, tensor.buffer = name.encode(), len(model.buffers)
                model.buffers.append(buffer)
                graph.tensors.append(tensor)
                tensors[name] = len(graph.tensors) - 1
            inputs = list(operator.inputs)
            inputs[_WEIGHTS_AT] = tensors[name]
            operator.inputs = inputs


def with_signature(model: Any) -> bytes:
    """Write a model with a signature that names its inputs and outputs as their tensors.

    Older writers of TFLite files left signatures out; ai-edge-quantizer cannot do without one.

    Args:
        model: as ``read_model`` gives it, without a signature; it gets one.
    """
    from ai_edge_litert.schema_py_generated import SignatureDefT, TensorMapT

    graph = model.subgraphs[0]

    def named(numbers: Any) -> list[Any]:
        entries = []
        for number in numbers:
            entry = TensorMapT()
            entry.name, entry.tensorIndex = graph.tensors[number].name, number
            entries.append(entry)
        return entries

    signature = SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs, signature.outputs = named(graph.inputs), named(graph.outputs)
    model.signatureDefs = [signature]
    return written(model)


def written(model: Any) -> bytes:
    """Write what ``read_model`` gave."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    return bytes(convert_object_to_bytearray(model))


def stored_type(tensor: Any) -> Stored | None:
    """Give what a tensor holds; ``None`` for anything that no weight is stored as."""
    from ai_edge_litert.schema_py_generated import TensorType

    if tensor.type in {TensorType.FLOAT32, TensorType.FLOAT64}:
        return "float32"
    if tensor.type in {TensorType.FLOAT16, TensorType.BFLOAT16}:
        return "half"
    quantization = tensor.quantization
    if quantization is None:  # shapes, axes and indices
        return None
    has_scale = quantization.scale is not None and len(quantization.scale) > 0
    return "integer" if has_scale or quantization.details is not None else None


def is_constant(model: Any, tensor: Any) -> bool:
    """Tell whether the file holds a tensor's values."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _constants(model: Any, graph: Any) -> set[int]:
    """Give the tensors that depend on no input: stored ones, and what is computed from them."""
    found = {number for number, t in enumerate(graph.tensors) if is_constant(model, t)}
    for operator in graph.operators:
        read = {int(number) for number in operator.inputs if number >= 0}
        if read and read <= found:
            found.update(int(number) for number in operator.outputs)
    return found


def _operation(
    model: Any, place: Place, kind: str, dequantized: dict[int, int], constants: set[int]
) -> Operation:
    graph = model.subgraphs[place[0]]
    operator = graph.operators[place[1]]
    factor = graph.tensors[operator.inputs[_WEIGHTS_AT]]
    source = graph.tensors[dequantized.get(operator.inputs[_WEIGHTS_AT], -1)]
    source = source if operator.inputs[_WEIGHTS_AT] in dequantized else factor
    constant = is_constant(model, source)
    stored = stored_type(source) if constant else None
    activations_at = operator.inputs[_ACTIVATIONS_AT.get(kind, 0)]
    activations = graph.tensors[activations_at]
    rounded = stored_type(activations) == "integer"
    output = graph.tensors[operator.outputs[0]]
    shape = tuple(int(size) for size in factor.shape)
    values = None
    if stored == "float32":
        values = np.frombuffer(model.buffers[source.buffer].data, np.float32).reshape(shape)
    return Operation(
        kind=kind,
        place=place,
        outputs=tuple(graph.tensors[index].name.decode() for index in operator.outputs),
        weights=source.name.decode() if constant else "",
        shape=shape,
        channel_axis=_channel_axis(operator, kind, shape),
        values=values,
        stored=stored,
        has_weights=not constants.isdisjoint({activations_at, operator.inputs[_WEIGHTS_AT]}),
        macs=_macs(operator, kind, shape, activations, output),
        activations_are_integer=rounded,
        is_integer=stored_type(factor) == "integer" and (constant or rounded),
    )


def _channel_axis(operator: Any, kind: str, shape: tuple[int, ...]) -> int:
    if kind != _BATCH_MATMUL:
        return _CHANNEL_AXES[kind]
    return len(shape) - (2 if operator.builtinOptions.adjY else 1)


def _macs(operator: Any, kind: str, shape: tuple[int, ...], activations: Any, output: Any) -> int:
    """Count multiply-accumulates from the shapes, for the batch of the file: one example."""
    elements = math.prod(int(size) for size in output.shape)
    match kind:
        case "CONV_2D":
            each = math.prod(shape[1:])
        case "DEPTHWISE_CONV_2D":
            each = math.prod(shape[1:3])
        case "CONV_3D":
            each = math.prod(shape[:-1])
        case "TRANSPOSE_CONV":  # every input element meets every weight of its input channel
            elements = math.prod(int(size) for size in activations.shape)
            each = math.prod(shape[:-1])
        case "FULLY_CONNECTED":
            each = shape[-1]
        case "BATCH_MATMUL":
            each = shape[-1 if operator.builtinOptions.adjY else -2]
        case _:  # a look-up multiplies nothing
            each = 0
    return elements * each
