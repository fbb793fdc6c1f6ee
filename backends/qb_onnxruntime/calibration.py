"""Ranges of activations, observed while the float model runs on calibration examples."""

from collections.abc import Collection

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
    operators: Collection[str],
    examples: Arrays,
    calibration: Calibration,
    bits: int,
    *,
    symmetric: bool,
) -> dict[str, tuple[float, float]]:
    """Give the range of every float32 tensor that operators of these kinds read or write.

    Args:
        model: a float model with inferred types.
        operators: kinds of operators.
        examples: by input name.
        calibration: names the observer.
        bits: of the activations.
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
    names = _activations(model, operators)
    observers = {name: make_observer(calibration, bits, symmetric=symmetric) for name in names}
    run = _session_that_gives(model, names).run
    step = 1 if any(entry.key == ONE_BY_ONE for entry in model.metadata_props) else BATCH
    for start in range(0, count, step):
        batch = {name: array[start : start + step] for name, array in examples.items()}
        for name, values in zip(names, run(names, batch), strict=True):
            try:
                observers[name].update(values)
            except NonFiniteError as error:
                raise NonFiniteError(f"activation '{name}': {error}") from error
    return {name: observer.range() for name, observer in observers.items()}


def _activations(model: onnx.ModelProto, operators: Collection[str]) -> list[str]:
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


def _session_that_gives(model: onnx.ModelProto, names: list[str]) -> ort.InferenceSession:
    """Open the model unoptimized, so that each of its tensors exists, with these as outputs."""
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
