"""Integer weights, and 8-bit activations whose range is found at every call."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qb_onnxruntime.graph import Layer, Part, attributes, replace_layers, stored
from qb_onnxruntime.runtime import ONE_BY_ONE

INTEGER_OP = {"Conv": "ConvInteger", "MatMul": "MatMulInteger", "Gemm": "MatMulInteger"}


def quantize_dynamic(model: onnx.ModelProto, bits: int, *, per_channel: bool) -> None:
    """Quantize every Conv and linear layer in place.

    The nodes are those that onnxruntime's quantize_dynamic writes, and its sessions fuse them
    alike. They are written here because that one quantizes Conv weights per tensor even when
    asked for channels, and stores nothing below 8 bits.
    """
    replace_layers(model, lambda layer: _integer_layer(layer, bits, per_channel=per_channel))
    # A range spans all examples of a batch, so a session has to run them one by one.
    model.metadata_props.append(onnx.StringStringEntryProto(key=ONE_BY_ONE, value="1"))


def _integer_layer(layer: Layer, bits: int, *, per_channel: bool) -> Part | None:
    operator = INTEGER_OP.get(layer.node.op_type)
    if operator is None:
        return None
    integers, scale = layer.quantized(bits, per_channel=per_channel)
    if layer.is_linear:
        integers, after_channels = np.moveaxis(integers, layer.axis, -1), []
        settings = {}
    else:
        after_channels = [1] * (integers.ndim - 2)
        settings = attributes(layer.node)
    weight, weight_scale, shape = (
        f"{layer.name}_{what}" for what in ("integers", "scale", "bias_shape")
    )
    out = layer.output
    nodes = [
        helper.make_node(
            "DynamicQuantizeLinear",
            [layer.node.input[0]],
            [f"{out}_input", f"{out}_input_scale", f"{out}_input_zero_point"],
        ),
        # Computed once, on loading: the kernels take 8-bit integers.
        helper.make_node("Cast", [weight], [f"{out}_weight"], to=TensorProto.INT8),
        helper.make_node(
            operator,
            [f"{out}_input", f"{out}_weight", f"{out}_input_zero_point"],
            [f"{out}_sum"],
            layer.node.name,
            **settings,
        ),
        helper.make_node("Cast", [f"{out}_sum"], [f"{out}_float_sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_input_scale", weight_scale], [f"{out}_scale"]),
        helper.make_node("Mul", [f"{out}_float_sum", f"{out}_scale"], [f"{out}_product"]),
    ]
    tensors = [
        stored(weight, integers, bits),
        numpy_helper.from_array(scale.reshape(-1, *after_channels), weight_scale),
    ]
    if layer.bias:
        nodes += [
            helper.make_node("Reshape", [layer.bias, shape], [f"{out}_bias"]),
            helper.make_node("Add", [f"{out}_product", f"{out}_bias"], [out]),
        ]
        tensors.append(numpy_helper.from_array(np.array([-1, *after_channels]), shape))
    else:
        nodes[-1].output[0] = out
    return Part(nodes, tensors)
