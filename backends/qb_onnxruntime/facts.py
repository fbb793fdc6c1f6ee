"""What an ONNX file holds, read from its tensors."""

import math

import onnx
from onnx import TensorProto

from qb_cluster.contracts import Artifact, ArtifactFacts
from qb_onnxruntime.graph import attributes

FLOAT_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
}
INTEGER_BITS = {
    TensorProto.INT2: 2,
    TensorProto.INT4: 4,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
}
COMPANIONS = ("_scale", "_zero_point")
"""How names of scales and zero points end, here and in onnxruntime's quantizers."""


def float_facts(data: bytes) -> ArtifactFacts:
    """Read the facts of a float file: its float tensors, lone constants of nodes left out."""
    floats = _parameters(onnx.load_from_string(data))
    return ArtifactFacts(
        parameters=sum(map(_count, floats)),
        parameter_bytes=sum(map(_bytes, floats)),
        quantized_parameters=0,
    )


def quantized_facts(data: bytes, baseline: Artifact, weight_bits: int) -> ArtifactFacts:
    """Read the facts of a quantized file.

    Args:
        data: the file.
        baseline: the float artifact it was made from.
        weight_bits: what was asked for.
    """
    model, float_model = map(onnx.load_from_string, (data, baseline.data))
    known = {tensor.name for tensor in float_model.graph.initializer}
    new = [tensor for tensor in model.graph.initializer if tensor.name not in known]
    companions = [tensor for tensor in new if tensor.name.endswith(COMPANIONS)]
    names = {tensor.name for tensor in companions}
    floats = [tensor for tensor in _parameters(model) if tensor.name not in names]
    integers = [
        tensor
        for tensor in new
        if tensor.data_type in INTEGER_BITS and tensor.name not in names and _count(tensor) > 1
    ]
    of_activations = _read_by("QuantizeLinear", model)
    of_weights = [tensor for tensor in companions if tensor.name not in of_activations]
    # MatMulNBits hides the number of weights: its tensor counts bytes, of padded rows.
    packed = {
        node.input[1]: attributes(node)["K"] * attributes(node)["N"]
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }
    weights = sum(map(_is_weight, _parameters(float_model)))
    left = sum(map(_is_weight, floats))
    wider = sum(
        _is_weight(tensor) and tensor.name not in packed and _bits(tensor) > weight_bits
        for tensor in integers
    )
    notes = {
        f"{left} of {weights} weight tensors stay float": left,
        f"{wider} of {weights} weight tensors take more than {weight_bits} bits": wider,
    }
    return ArtifactFacts(
        parameters=baseline.facts.parameters,
        parameter_bytes=sum(map(_bytes, [*floats, *integers, *of_weights])),
        quantized_parameters=sum(packed.get(t.name, _count(t)) for t in integers),
        notes=tuple(note for note, count in notes.items() if count),
    )


def _parameters(model: onnx.ModelProto) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_type in FLOAT_BITS and _count(t) > 1]


def _read_by(operator: str, model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node if node.op_type == operator for name in node.input}


def _is_weight(tensor: TensorProto) -> bool:
    return len(tensor.dims) > 1


def _count(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)


def _bits(tensor: TensorProto) -> int:
    return (FLOAT_BITS | INTEGER_BITS)[tensor.data_type]


def _bytes(tensor: TensorProto) -> int:
    return math.ceil(_count(tensor) * _bits(tensor) / 8)
