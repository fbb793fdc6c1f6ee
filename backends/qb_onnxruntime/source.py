"""From an ``.onnx`` file of the user's to the float artifact."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qb_cluster.contracts import Arrays
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_onnxruntime.export import LARGEST_FILE
from qb_onnxruntime.folding import fold_weights
from qb_onnxruntime.graph import OPSET, raised
from qb_onnxruntime.reason import reason
from qb_onnxruntime.runtime import ONE_BY_ONE, Session
from qb_onnxruntime.subgraphs import all_graphs, rename_reads

QUANTIZED_OPERATORS = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "QuantizeLinear",
)


_INTEGERS = "iub"


def from_file(path: Path, example: Arrays) -> bytes:
    """Read a float model, make its inputs those of the examples, and try it on one.

    Inputs go by name, or by position where no name is the same. A model for batches of one runs
    examples one by one. Weights in files beside it are taken in.

    Args:
        path: the file.
        example: one example (axis 0 has length 1).

    Raises:
        PlugInError: it cannot be read or run, or its inputs are others.
        UnsupportedError: it is quantized, too large for one file, takes batches of a fixed
            size other than 1, or has its examples elsewhere than along axis 0.
    """
    model = _read(path)
    found = {node.op_type for node in model.graph.node}
    quantized = {op for op in found if op in QUANTIZED_OPERATORS or op.startswith("QLinear")}
    if quantized:
        raise UnsupportedError(
            f"{path.name} is quantized already ({', '.join(sorted(quantized))}), and a baseline "
            "is float; give the float model it was made from"
        )
    _free_sizes(model)
    with suppress(UnsupportedError):  # the float one runs as it is; quantizing will say it again
        model = raised(model, OPSET)
    _prepare(model)
    fold_weights(model)
    _feed(model, example, path.name)
    data = bytes(model.SerializeToString())
    _try(data, example, path.name)
    return data


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # no file, no protobuf, or no weights beside it
        raise PlugInError(
            f"{path.name} cannot be read as an ONNX model ({reason(error)}); see that it is "
            "whole, and that files with its weights lie beside it"
        ) from error
    if not model.graph.node:
        raise PlugInError(f"{path.name} holds no ONNX graph; see that it is whole")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > LARGEST_FILE:
        raise UnsupportedError(
            f"the weights of {path.name} take {size / 2**30:.1f} GiB, and one ONNX file holds at "
            "most 2 GiB; leave onnxruntime out of the backends of this model"
        )
    return model


def _free_sizes(model: onnx.ModelProto) -> None:
    """Take away sizes below 0, by which some exporters (Paddle's) say that an axis is free."""
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")


def _prepare(model: onnx.ModelProto) -> None:
    """Name every node, and turn constants into initializers, where weights are looked for.

    Initializers of old files are inputs as well, whose value a caller could replace: not here.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    nodes = []
    names = {""}
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            graph.initializer.append(value)
            continue
        if node.name in names:
            node.name = f"{node.op_type}_{node.output[0]}"
        names.add(node.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _feed(model: onnx.ModelProto, example: Arrays, file: str) -> None:
    """Give the model inputs of the examples' names and types, in front of its own, in place."""
    graph = model.graph
    own = list(graph.input)
    names = {value.name: value.name for value in own}
    if not set(names) & set(example):
        names = dict(zip(names, example, strict=False))
    if len(own) != len(example) or set(names.values()) != set(example):
        raise PlugInError(
            f"{file} has the inputs {', '.join(v.name for v in own)}, and the dataset gives "
            f"{', '.join(example)}; give the dataset's inputs the model's names"
        )
    if _one_by_one({value.name: _shape(value) for value in own}, file):
        helper.set_model_props(
            model, {entry.key: entry.value for entry in model.metadata_props} | {ONE_BY_ONE: "1"}
        )
    for value in own:
        _check(value, example[names[value.name]], file)
    fronts = []
    for value in own:
        name, array = names[value.name], example[names[value.name]]
        wanted = value.type.tensor_type.elem_type
        given = helper.np_dtype_to_tensor_dtype(array.dtype)
        if name == value.name and wanted == given:
            continue
        inner = f"{value.name}_of_file"
        rename_reads(graph, {value.name: inner})
        fronts.append(helper.make_node("Cast", [name], [inner], f"{inner}_cast", to=wanted))
        value.name = name
        value.type.tensor_type.elem_type = given
    nodes = [*fronts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    """Give the size of each axis, or its name (``?`` for none) where it is free."""
    return [
        dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    ]


def _check(value: onnx.ValueInfoProto, array: NDArray[Any], file: str) -> None:
    """Refuse examples that an input does not take.

    Raises:
        UnsupportedError: the input has no axis for examples.
        PlugInError: examples have another shape, or are integers where it takes floats.
    """
    tensor = value.type.tensor_type
    shape = _shape(value)
    if tensor.HasField("shape") and not shape:
        raise UnsupportedError(
            f"input '{value.name}' of {file} is one number without an axis for examples, which "
            "must lie along axis 0; make it a constant inside the model"
        )
    fits = len(shape) == array.ndim and all(
        isinstance(size, str) or size == given
        for size, given in zip(shape[1:], array.shape[1:], strict=True)
    )
    if tensor.HasField("shape") and not fits:
        raise PlugInError(
            f"input '{value.name}' of {file} has the shape {_written(shape)}, and an example "
            f"{list(array.shape)}; reshape the dataset's"
        )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if (dtype.kind in _INTEGERS) != (array.dtype.kind in _INTEGERS):
        raise PlugInError(
            f"input '{value.name}' of {file} is {dtype}, and the dataset gives {array.dtype}"
        )


def _one_by_one(shapes: Mapping[str, list[int | str]], file: str) -> bool:
    """Tell from the shapes of the inputs whether the model takes one example per call.

    Raises:
        UnsupportedError: axis 0 of an input is neither free nor 1.
    """
    sizes = {name: shape[0] for name, shape in shapes.items() if shape}
    fixed = {name: size for name, size in sizes.items() if isinstance(size, int) and size > 1}
    if fixed:
        name, size = next(iter(fixed.items()))
        inner = (axis for shape in shapes.values() for axis in shape[1:])
        if set(sizes.values()) == {size} and not any(isinstance(axis, str) for axis in inner):
            raise UnsupportedError(
                f"{file} takes batches of {size} examples only; export it with a dynamic batch, "
                "or a batch of 1"
            )
        raise UnsupportedError(
            f"input '{name}' of {file} has the shape {_written(shapes[name])}: examples must lie "
            f"along axis 0, which always has {size} entries here; export a model whose inputs and "
            "outputs all have the batch on axis 0, free or 1 (transpose inside it)"
        )
    return 1 in sizes.values()


def _written(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _try(data: bytes, example: Arrays, file: str) -> None:
    try:
        outputs = Session(data, threads=1)(example)
    except Exception as error:  # whatever a foreign graph does
        raise PlugInError(
            f"onnxruntime cannot run {file}: {reason(error)}; see that it runs in onnxruntime by "
            "itself"
        ) from error
    for name, array in outputs.items():
        if not array.ndim or len(array) != 1:
            raise UnsupportedError(
                f"output '{name}' of {file} has the shape {list(array.shape)} for one example; "
                "examples must lie along axis 0: transpose it inside the model, or leave it out"
            )
