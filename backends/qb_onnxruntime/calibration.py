"""Ranges of activations, observed while the float model runs on calibration examples."""

from collections.abc import Collection, Sequence

import onnx
import onnxruntime as ort
from onnx import TensorProto

from qb_cluster.contracts import Arrays, Calibration
from qb_cluster.errors import DataError, NonFiniteError
from qb_cluster.quantization.observers import make_observer
from qb_onnxruntime.runtime import ONE_BY_ONE, session_options

BATCH = 8
"""Examples to a call: all activations of these are in memory at once."""


def observe(
    model: onnx.ModelProto,
    places: Sequence[tuple[str, int]],
    examples: Arrays,
    calibration: Calibration,
    *,
    symmetric: bool,
) -> list[tuple[float, float]]:
    """Give the ranges of float32 tensors, in the order in which they are asked for.

    Args:
        model: a float model.
        places: tensors, each with the bits that it will have.
        examples: by input name.
        calibration: names the observer.
        symmetric: see ``make_observer``.

    Raises:
        DataError: there are no examples.
        NonFiniteError: an activation is NaN or infinite.
    """
    count = len(next(iter(examples.values())))
    if count == 0:
        raise DataError(
            "static activations need calibration examples, and there are none; give the dataset "
            "a calibration part, or raise calibration.samples above 0"
        )
    observers = {
        place: make_observer(calibration, place[1], symmetric=symmetric) for place in places
    }
    names = list(dict.fromkeys(name for name, _ in places))
    run = session_that_gives(model, names).run
    # Within a graph, examples may lie along any axis: one by one they are told apart.
    is_alone = calibration.observer == "moving_average" or is_one_by_one(model)
    step = 1 if is_alone else BATCH
    for start in range(0, count, step):
        batch = {name: array[start : start + step] for name, array in examples.items()}
        found = dict(zip(names, run(names, batch), strict=True))
        for (name, _), observer in observers.items():
            values = found[name][None] if is_alone else found[name]
            try:
                observer.update(values)
            except NonFiniteError as error:
                raise NonFiniteError(f"activation '{name}': {error}") from error
    return [observers[place].range() for place in places]


def is_one_by_one(model: onnx.ModelProto) -> bool:
    """Tell whether a model takes one example at a time."""
    return any(entry.key == ONE_BY_ONE for entry in model.metadata_props)


def activations(model: onnx.ModelProto, operators: Collection[str]) -> list[str]:
    """Name the float32 tensors that operators of these kinds read or write.

    Args:
        model: with inferred types.
        operators: kinds of operators.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    touched = {
        name
        for node in graph.node
        if node.op_type in operators
        for name in (*node.input, *node.output)
    }
    return [
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        and value.name in touched - constants
    ]


def session_that_gives(model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    """Open a model unoptimized, so that all its tensors exist, with float32 ones as outputs."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
