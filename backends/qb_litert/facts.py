"""What a ``.tflite`` really holds, read from the flatbuffer."""

import math
from dataclasses import dataclass
from typing import Any

from qb_cluster.contracts import ArtifactFacts

_SCALE_BYTES = 4  # float32 in the schema
_ZERO_POINT_BYTES = 8  # int64 in the schema


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A constant tensor that holds weights or a bias.

    Attributes:
        elements: how many numbers it holds.
        rank: number of axes; a bias has one, weights have more.
        stored_bytes: bytes of the numbers, their scales and zero points.
        is_float: they are stored as floating point.
    """

    elements: int
    rank: int
    stored_bytes: int
    is_float: bool


def float_facts(data: bytes) -> ArtifactFacts:
    """Read a float file: every floating-point constant is a parameter."""
    parameters = _parameters(data)
    return ArtifactFacts(
        parameters=sum(parameter.elements for parameter in parameters),
        parameter_bytes=sum(parameter.stored_bytes for parameter in parameters),
        quantized_parameters=0,
    )


def quantized_facts(data: bytes, parameters: int) -> ArtifactFacts:
    """Read a file that should be quantized.

    Args:
        data: the file.
        parameters: number of parameters of the float file it was made from.
    """
    found = _parameters(data)
    weights = [parameter for parameter in found if parameter.rank > 1]
    still_float = sum(weight.is_float for weight in weights)
    return ArtifactFacts(
        parameters=parameters,
        parameter_bytes=sum(parameter.stored_bytes for parameter in found),
        quantized_parameters=sum(p.elements for p in found if not p.is_float),
        notes=(f"{still_float} of {len(weights)} weight tensors stay float",)
        if still_float
        else (),
    )


def _parameters(data: bytes) -> list[_Parameter]:
    """Find the parameters; tensors that share a buffer (tied weights) count once.

    Shapes, axes and paddings are integer constants too, but have no scale.
    """
    from ai_edge_litert.schema_py_generated import TensorType
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    floats = {TensorType.FLOAT16, TensorType.BFLOAT16, TensorType.FLOAT32, TensorType.FLOAT64}
    model = read_model_from_bytearray(data)
    found: dict[int, _Parameter] = {}
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        content = model.buffers[tensor.buffer].data
        scale_bytes = _scale_bytes(tensor.quantization)
        is_float = tensor.type in floats
        if content is not None and len(content) and (is_float or scale_bytes):
            shape = () if tensor.shape is None else tensor.shape
            found[tensor.buffer] = _Parameter(
                elements=math.prod(shape),
                rank=len(shape),
                stored_bytes=len(content) + scale_bytes,
                is_float=is_float,
            )
    return list(found.values())


def _scale_bytes(quantization: Any) -> int:
    """Count the bytes of a tensor's scales and zero points."""
    if quantization is None or quantization.scale is None:
        return 0
    zero_points = () if quantization.zeroPoint is None else quantization.zeroPoint
    return _SCALE_BYTES * len(quantization.scale) + _ZERO_POINT_BYTES * len(zero_points)
