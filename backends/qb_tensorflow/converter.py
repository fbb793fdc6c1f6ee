"""Keras models and SavedModels → quantized ``.tflite`` by TFLiteConverter."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.causes import cause, shortened
from qb_cluster.contracts import Arrays, Artifact, Quantization
from qb_cluster.errors import DataError, NonFiniteError, UnsupportedError
from qb_litert.quiet import quiet
from qb_tensorflow import keras_file, saved_model
from qb_tensorflow.feeding import feed
from qb_tensorflow.framework import tensorflow

_PLACE: Final = re.compile(r"loc\(.*?\): ")
"""Where in the graph it was, through all functions that it was called from."""
_CONSEQUENCES: Final = ("failed while converting", "failed to legalize", "Lowering tensor list")
"""What the converter reports as errors once another has stopped it."""


def quantize(baseline: Artifact, quantization: Quantization, calibration: Arrays | None) -> bytes:
    """Convert and quantize in one step, with float inputs and outputs.

    Static ranges are the true minimum and maximum over all calibration examples. Operations
    that have no integer kernels stay float.

    Args:
        baseline: the float artifact.
        quantization: something that ``support`` said yes to.
        calibration: examples along axis 0, for static activations only.

    Raises:
        DataError: there are no calibration examples.
        NonFiniteError: weights are NaN or infinite.
        UnsupportedError: the converter refuses this model, or LiteRT is known to run it wrongly.
    """
    tf = tensorflow()
    with _opened(baseline) as (converter, specs):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        scheme, bits = quantization.scheme, quantization.bits
        # Nothing public sets it; a test counts the scales.
        converter._experimental_disable_per_channel = (  # noqa: SLF001
            scheme.granularity == "per_tensor"
        )
        if scheme.number == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        elif calibration is not None:
            ops = tf.lite.OpsSet
            integers = {
                8: ops.TFLITE_BUILTINS_INT8,
                16: ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            }[bits.activation or 8]
            converter.target_spec.supported_ops = [integers, ops.TFLITE_BUILTINS]
            fed = _usable(feed(specs, calibration))
            converter.representative_dataset = lambda: _examples(fed)
        try:
            with quiet():
                data = bytes(converter.convert())
        except Exception as error:  # the converter raises what it likes
            raise UnsupportedError(
                f"TFLiteConverter cannot do {scheme.name} {bits} to this model ({_cause(error)}); "
                "use other operations, or leave tensorflow out of the backends of this model"
            ) from error
    _refuse_garbage(data)
    return data


@contextlib.contextmanager
def _opened(baseline: Artifact) -> Iterator[tuple[Any, Any]]:
    """Give a converter for the float model, and the specs of its inputs."""
    tf = tensorflow()
    if baseline.format == keras_file.FORMAT:
        model = keras_file.load(baseline.data)
        for weight in model.weights:
            if not np.isfinite(np.asarray(weight.value, np.float32)).all():
                raise NonFiniteError(
                    f"'{weight.path}' holds NaN or infinity; load or train the model anew"
                )
        with quiet():
            converter = tf.lite.TFLiteConverter.from_keras_model(model)
        yield converter, keras_file.input_specs(model)
        return
    with saved_model.unpacked(baseline.data) as folder:
        signature = saved_model.load(folder)
        with quiet():
            converter = tf.lite.TFLiteConverter.from_saved_model(
                str(folder), signature_keys=[signature.key]
            )
        yield converter, signature.function.structured_input_signature[1]


def _usable(fed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Refuse calibration examples that the converter makes garbage of, or dies of.

    Raises:
        DataError: there are none.
        NonFiniteError: they hold NaN or infinity.
    """
    for name, values in fed.items():
        if not len(values):
            raise DataError("there are no calibration examples; static ranges need some")
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"calibration examples hold NaN or infinity in '{name}'; leave those out"
            )
    return fed


def _examples(fed: Arrays) -> Iterator[Any]:
    """Give examples one by one, as the converter takes them."""
    for row in range(len(next(iter(fed.values())))):
        example = {name: values[row : row + 1] for name, values in fed.items()}
        yield list(example.values()) if len(example) == 1 else example


def _refuse_garbage(data: bytes) -> None:
    """Refuse dynamic depthwise convolutions whose weights have one scale.

    LiteRT 2.3 runs them on x86 without an error and returns garbage.

    Raises:
        UnsupportedError: there is one.
    """
    from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model = read_model_from_bytearray(data)
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex].builtinCode
            if code != BuiltinOperator.DEPTHWISE_CONV_2D:
                continue
            inputs, weights = (graph.tensors[index] for index in operator.inputs[:2])
            hybrid = (inputs.type, weights.type) == (TensorType.FLOAT32, TensorType.INT8)
            if hybrid and len(weights.quantization.scale) == 1:
                raise UnsupportedError(
                    "the model has depthwise convolutions, for which LiteRT's dynamic kernel "
                    "returns garbage when a tensor has one scale; use granularity per_channel"
                )


def _cause(error: Exception) -> str:
    """Give what stopped the converter, in one line, out of pages of places, notes and code."""
    # An error may follow another text without a break.
    errors = re.findall(r"<unknown>:0: error: (.*)", str(error))
    said = [_PLACE.sub("", line).strip() for line in errors]
    causes = [line for line in dict.fromkeys(said) if line and not line.startswith(_CONSEQUENCES)]
    if not causes:
        return cause(error)
    return f"{type(error).__name__}: {shortened('; '.join(causes))}"
