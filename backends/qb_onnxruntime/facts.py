"""What an ONNX file holds, read from its tensors."""

import math
from collections.abc import Collection

import onnx
from onnx import TensorProto

from qb_cluster.contracts import Artifact, ArtifactFacts, Quantization
from qb_onnxruntime.coverage import coverage_of
from qb_onnxruntime.graph import attributes
from qb_onnxruntime.macs import PRODUCTS, Arithmetic, arithmetic, float_products, float_tensors
from qb_onnxruntime.naming import RECURRENT
from qb_onnxruntime.subgraphs import all_graphs
from qb_onnxruntime.support import SCOPE, widths

FLOAT_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
}
QUANTIZED_BITS = {
    TensorProto.INT2: 2,
    TensorProto.INT4: 4,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT32: 32,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E5M2: 8,
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
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
    )


def quantized_facts(data: bytes, baseline: Artifact, quantization: Quantization) -> ArtifactFacts:
    """Read the facts of a quantized file.

    Args:
        data: the file.
        baseline: the float artifact it was made from.
        quantization: what was asked for.
    """
    model, float_model = map(onnx.load_from_string, (data, baseline.data))
    known = {(tensor.name, tensor.data_type) for tensor in float_model.graph.initializer}
    new = [t for t in model.graph.initializer if (t.name, t.data_type) not in known]
    companions = [tensor for tensor in new if tensor.name.endswith(COMPANIONS)]
    names = {tensor.name for tensor in companions}
    half = TensorProto.FLOAT16 if quantization.scheme.number == "fp16" else None
    floats = [t for t in _parameters(model) if t.name not in names and t.data_type != half]
    quantized = [
        tensor
        for tensor in new
        if tensor.name not in names
        and _count(tensor) > 1
        and (tensor.data_type in QUANTIZED_BITS or tensor.data_type == half)
    ]
    of_activations = _read_by("QuantizeLinear", model)
    of_weights = [tensor for tensor in companions if tensor.name not in of_activations]
    # MatMulNBits hides the number of weights: its tensor counts bytes, of padded rows.
    packed = {
        node.input[1]: attributes(node)["K"] * attributes(node)["N"]
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }
    count = sum(map(_is_weight, _parameters(float_model)))
    left = sum(map(_is_weight, floats))
    widest = max(bits.weight for bits in widths(quantization))
    wider = sum(
        _is_weight(tensor) and tensor.name not in packed and _bits(tensor) > widest
        for tensor in quantized
    )
    notes = {
        f"{left} of {count} weight tensors stay float": left,
        f"{wider} of {count} weight tensors take more than {widest} bits": wider,
    }
    is_integer = quantization.scheme.number == "integer"
    computed = (
        arithmetic(data, float_model, quantization) if is_integer else Arithmetic(0.0, 0.0, ())
    )
    return ArtifactFacts(
        parameters=baseline.facts.parameters,
        parameter_bytes=sum(map(_bytes, [*floats, *quantized, *of_weights])),
        # A bias that layers share is stored once for each scale that it needs.
        quantized_parameters=min(
            baseline.facts.parameters, sum(packed.get(t.name, _count(t)) for t in quantized)
        ),
        notes=tuple(note for note, count in notes.items() if count),
        integer_mac_share=computed.integer_share,
        integer_layer_mac_share=computed.integer_layer_share,
        fallback_ops=computed.fallback,
        coverage=coverage_of(float_model, float_tensors(model), quantization),
        scope=quantization.scheme.scope_or(SCOPE),
    )


def simulated_facts(
    baseline: Artifact,
    quantization: Quantization,
    rounded: Collection[str],
    left: Collection[str],
) -> ArtifactFacts:
    """Tell what was rounded in a float file.

    Args:
        baseline: the float artifact.
        quantization: what was asked for.
        rounded: names of the weights that are rounded.
        left: names of recurrent nodes whose state stays float.
    """
    model = onnx.load_from_string(baseline.data)
    floats = float_tensors(model) - set(rounded)
    stored = {tensor.name: tensor for tensor in _parameters(model)}
    biases = {n for node in model.graph.node if node.op_type in RECURRENT for n in node.input[3:4]}
    weights = [name for name, tensor in stored.items() if _is_weight(tensor) and name not in biases]
    still = sum(name in floats for name in weights)
    inner = sum(
        node.op_type in (*PRODUCTS, *RECURRENT)
        for graph in all_graphs(model.graph)
        if graph is not model.graph
        for node in graph.node
    )
    notes = {
        f"{still} of {len(weights)} weight tensors stay float": still,
        f"the states of {len(left)} recurrent nodes stay float ({', '.join(left)})": len(left),
        f"{inner} products in subgraphs (If, Loop, Scan) stay float": inner,
    }
    return ArtifactFacts(
        parameters=baseline.facts.parameters,
        parameter_bytes=None,
        quantized_parameters=sum(_count(stored[name]) for name in rounded if name in stored),
        notes=tuple(note for note, count in notes.items() if count),
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
        fallback_ops=float_products(model, floats, quantization),
        coverage=coverage_of(model, floats, quantization),
        scope=quantization.scheme.scope_or(SCOPE),
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
    return (FLOAT_BITS | QUANTIZED_BITS)[tensor.data_type]


def _bytes(tensor: TensorProto) -> int:
    return math.ceil(_count(tensor) * _bits(tensor) / 8)
