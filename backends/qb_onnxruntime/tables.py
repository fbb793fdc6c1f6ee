"""Weights that nodes read beside their input: of embeddings, and of recurrent layers.

They are stored as integers and dequantized once, on loading: what reads them stays as it is.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qb_cluster.contracts import Quantization
from qb_onnxruntime.coverage import Weight, is_covered, weights
from qb_onnxruntime.dequantize import dequantizing
from qb_onnxruntime.graph import Layer, stored_dtype


def quantize_tables(model: onnx.ModelProto, quantization: Quantization) -> None:
    """Quantize in place what the scheme covers, and is float yet.

    Output channels are the rows of an embedding and the gates of a recurrent layer; those that
    run both ways have two matrices in one tensor, and stay float.

    Raises:
        NonFiniteError: weights are NaN or infinite.
    """
    graph = model.graph
    floats = {tensor.name: tensor for tensor in graph.initializer}
    for weight in weights(model):
        if weight.kind not in {"embedding", "recurrent"} or not is_covered(
            weight.kind, weight.layer, quantization
        ):
            continue
        values = numpy_helper.to_array(floats[weight.tensor])
        if weight.kind == "recurrent" and len(values) > 1:
            continue
        nodes, tensors = _stored(weight, values, quantization)
        graph.initializer.remove(floats[weight.tensor])
        graph.initializer.extend(tensors)
        graph.node.extend(nodes)  # sorted later


def _stored(
    weight: Weight, values: np.ndarray, quantization: Quantization
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Give the nodes that compute a weight under its old name, and what they read."""
    bits = quantization.layer_bits(weight.layer)
    assert bits is not None
    scheme = quantization.scheme
    reader = helper.make_node("Identity", ["", weight.tensor], [weight.tensor])
    layer = Layer(reader, values, weight.axis)
    codes = layer.codes(scheme, bits)
    dtype = stored_dtype(bits.weight)
    zero_point = None if codes.zero_point is None else codes.zero_point.astype(dtype)
    part = dequantizing(
        layer, codes.integers.astype(dtype), codes.scale, zero_point, scheme.group_size
    )
    *nodes, _ = part.nodes
    nodes[-1].output[0] = weight.tensor
    return nodes, list(part.tensors)
