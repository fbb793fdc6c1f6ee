"""The ranges that ai-edge-quantizer is told: of activations, and of weights where ours differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from qb_cluster.contracts import Arrays, Calibration, Quantization
from qb_cluster.errors import DataError, NonFiniteError
from qb_cluster.quantization.affine import affine_qparams, symmetric_qparams
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_cluster.quantization.observers import Observer, make_observer
from qb_cluster.quantization.weights import quantize_weights
from qb_litert.graph import Operation, is_constant
from qb_litert.quiet import quiet
from qb_litert.runtime import TFLiteExecutable
from qb_tflite.support import SYMMETRIC_ACTIVATION_BITS

Ranges = dict[str, dict[str, Any]]
"""By tensor name: ``min`` and ``max``, arrays of the tensor's rank."""

_KEPT: Final[KeptRanges[Mapping[Any, tuple[float, int]]]] = KeptRanges()
_LARGEST = 3e38  # what a mask holds instead of minus infinity is more


def activation_ranges(
    data: bytes, model: Any, quantization: Quantization, calibration: Arrays | None
) -> Ranges:
    """Observe every activation of the float model over the calibration examples.

    The quantizer's own ``calibrate`` knows no observer but a moving average, which clips what
    most examples hold: 15 dB where the true range gives 40 (digits CNN, w8a8).

    Args:
        data: the float file.
        model: the same, as ``read_model`` gives it.
        quantization: its calibration names the observer (minimum and maximum if it has none),
            its bits the width that ``mse`` and ``entropy`` clip for.
        calibration: examples along axis 0.

    Returns:
        Of all activations but those that held infinity, or what stands for it in a mask: no
        integers hold both that and anything else. See ``without_range``.

    Raises:
        DataError: there are no calibration examples.
        NonFiniteError: one of them makes a tensor NaN.
    """
    bits = quantization.bits.activation
    assert bits is not None
    examples = _examples(calibration)
    symmetric = quantization.scheme.symmetric_activations or bits in SYMMETRIC_ACTIVATION_BITS
    how = quantization.calibration or Calibration()
    executable = TFLiteExecutable(data, threads=1, keep_tensors=True)
    watched = _float_activations(model)
    observers: dict[int, Observer] = {}
    unbounded: set[int] = set()
    for example, inputs in enumerate(examples):
        executable(inputs)
        for number, tensor in watched.items():
            values = executable.tensor(number).astype(np.float32, copy=False).reshape(1, -1)
            if np.isnan(values).any():
                raise NonFiniteError(
                    f"calibration example {example} makes the float model's "
                    f"'{tensor.name.decode()}' NaN; look for NaN in its inputs and weights"
                )
            if (np.abs(values) > _LARGEST).any():
                unbounded.add(number)
            elif values.size:
                if number not in observers:
                    observers[number] = make_observer(how, bits, symmetric=symmetric)
                observers[number].update(values)
    ranges = {}
    for number, observer in observers.items():
        if number in unbounded:
            continue
        tensor = watched[number]
        low, high = observer.range()
        shape = [1] * (0 if tensor.shape is None else len(tensor.shape))
        ranges[tensor.name.decode()] = {
            "min": np.full(shape, low, np.float32),
            "max": np.full(shape, high, np.float32),
        }
    return ranges


@dataclass(frozen=True, slots=True)
class Watched:
    """Tensors of the first subgraph that share a quantizer.

    Attributes:
        tensors: their numbers.
        bits: of the quantizer.
    """

    tensors: tuple[int, ...]
    bits: int


Key = TypeVar("Key")


def qparams_of(
    data: bytes,
    watched: Mapping[Key, Watched],
    quantization: Quantization,
    calibration: Arrays | None,
) -> Mapping[Key, tuple[float, int]]:
    """Give scale and zero point of activations of a float file, as ``affine_qparams`` does.

    Args:
        data: the float file.
        watched: what to look at.
        quantization: names the observer; its scheme says whether ranges are symmetric.
        calibration: examples along axis 0.

    Raises:
        DataError: there are no calibration examples.
        NonFiniteError: an activation is NaN or infinite.
    """
    how, symmetric = (
        quantization.calibration or Calibration(),
        quantization.scheme.symmetric_activations,
    )
    examples = _examples(calibration)
    qparams = symmetric_qparams if symmetric else affine_qparams

    def observe() -> dict[Any, tuple[float, int]]:
        with quiet():
            executable = TFLiteExecutable(data, threads=1, keep_tensors=True)
        observers = {
            key: make_observer(how, place.bits, symmetric=symmetric)
            for key, place in watched.items()
        }
        for inputs in examples:
            executable(inputs)
            for key, place in watched.items():
                for number in place.tensors:
                    observers[key].update(executable.tensor(number).reshape(1, -1))
        return {
            key: qparams(*observer.range(), watched[key].bits)
            for key, observer in observers.items()
        }

    return _KEPT.observed(
        observe,
        model=repr(watched).encode() + data,  # scales depend on more than ranges do
        examples=calibration or {},
        calibration=how,
        bits=quantization.bits.activation,
        symmetric=symmetric,
    )


def _examples(calibration: Arrays | None) -> list[Arrays]:
    """Give calibration examples one by one.

    Raises:
        DataError: there are none.
    """
    count = 0 if not calibration else min(len(values) for values in calibration.values())
    if calibration is None or count == 0:
        raise DataError(
            "static activations need calibration examples, and there are none; give the dataset "
            "some, or raise the scheme's calibration samples"
        )
    return [
        {name: values[row : row + 1] for name, values in calibration.items()}
        for row in range(count)
    ]


def without_range(model: Any, ranges: Ranges) -> Iterator[tuple[str, ...]]:
    """Find the operations around activations that no range fits: a causal mask, say.

    Args:
        model: as ``read_model`` gives it.
        ranges: of its activations.

    Yields:
        Names of the operation's outputs.
    """
    graph = model.subgraphs[0]
    left = {
        number
        for number, tensor in _float_activations(model).items()
        if tensor.name.decode() not in ranges
    }
    for operator in graph.operators:
        if not left.isdisjoint(map(int, (*operator.inputs, *operator.outputs))):
            yield tuple(graph.tensors[number].name.decode() for number in operator.outputs)


def weight_ranges(operations: list[Operation], quantization: Quantization) -> Ranges:
    """Give the ranges of weights over which the quantizer's grid is the scheme's.

    The quantizer divides a symmetric range by 2^(bits-1) - 1 and an affine one by 2^bits - 1;
    so what the reference arithmetic took as scale comes out again.

    Args:
        operations: those whose float weights become integers.
        quantization: of all of them.
    """
    scheme, bits = quantization.scheme, quantization.bits
    ranges = {}
    for operation in operations:
        assert operation.values is not None
        rows = np.moveaxis(operation.values, operation.channel_axis, 0)
        rounded = quantize_weights(rows, scheme, bits, name=operation.weights)
        scale, zero_point = rounded.scale, rounded.zero_point
        if scheme.group_size is not None:
            scale = scale.reshape(len(rows), -1)[:, :: scheme.group_size]
        else:
            scale = np.moveaxis(scale, 0, operation.channel_axis)
            zero_point = np.moveaxis(zero_point, 0, operation.channel_axis)
        if scheme.symmetric:
            high = scale * np.float32(2 ** (bits.weight - 1) - 1)
            low = -high
        else:
            low = -zero_point * scale
            high = (2**bits.weight - 1 - zero_point) * scale
        ranges[operation.weights] = {"min": low, "max": high}
    return ranges


def _float_activations(model: Any) -> dict[int, Any]:
    """Give the float32 tensors that a run computes, by number; those of the first subgraph."""
    from ai_edge_litert.schema_py_generated import TensorType

    return {
        number: tensor
        for number, tensor in enumerate(model.subgraphs[0].tensors)
        if tensor.type == TensorType.FLOAT32 and not is_constant(model, tensor)
    }
