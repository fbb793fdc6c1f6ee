"""Integer weights, and 8-bit activations whose range is found at every call."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.errors import UnsupportedError
from qb_cluster.quantization.affine import symmetric_limit
from qb_onnxruntime.graph import Chosen, Layer, Part, attributes, replace_layers, stored
from qb_onnxruntime.runtime import ONE_BY_ONE

INTEGER_OP = {"Conv": "ConvInteger", "MatMul": "MatMulInteger", "Gemm": "MatMulInteger"}


def quantize_dynamic(model: onnx.ModelProto, scheme: Scheme, chosen: Chosen) -> None:
    """Quantize Conv and linear layers in place.

    The nodes are those that onnxruntime's quantize_dynamic writes, and its sessions fuse them
    alike. They are written here because that one quantizes Conv weights per tensor even when
    asked for channels, and stores nothing below 8 bits.

    Raises:
        UnsupportedError: there are no kernels for any of the layers.
    """
    before = {node.op_type for node in model.graph.node}

    def replace(layer: Layer) -> Part | None:
        bits = chosen.get(layer.output)
        if bits is None or not has_kernel(layer.node, scheme):
            return None
        return _integer_layer(layer, scheme, bits)

    replace_layers(model, replace)
    if not {node.op_type for node in model.graph.node} & set(INTEGER_OP.values()):
        raise UnsupportedError(
            f"onnxruntime has no dynamic kernels for the layers of this model ({sorted(before)}) "
            "with this scheme: ConvInteger takes one zero point a tensor and ConvTranspose stays "
            "float; use symmetric weights, per_tensor, or weight_only"
        )
    # A range spans all examples of a batch, so a session has to run them one by one.
    helper.set_model_props(
        model, {entry.key: entry.value for entry in model.metadata_props} | {ONE_BY_ONE: "1"}
    )


def has_kernel(node: NodeProto, scheme: Scheme) -> bool:
    """Tell whether a layer can compute in integers: ConvInteger takes one zero point a tensor."""
    if node.op_type == "Conv":
        return scheme.symmetric or scheme.granularity == "per_tensor"
    return node.op_type in INTEGER_OP


def _integer_layer(layer: Layer, scheme: Scheme, bits: Bits) -> Part:
    codes = layer.codes(scheme, bits)
    integers = codes.integers
    if layer.is_linear:
        integers, after_channels = np.moveaxis(integers, layer.axis, -1), []
        settings = {}
    else:
        after_channels = [1] * (integers.ndim - 2)
        settings = attributes(layer.node)
    weight, weight_scale, weight_zero_point, shape = (
        f"{layer.name}_{what}" for what in ("integers", "scale", "zero_point", "bias_shape")
    )
    tensors = [
        stored(weight, integers, bits.weight),
        numpy_helper.from_array(codes.scale.reshape(-1, *after_channels), weight_scale),
    ]
    if codes.zero_point is not None:
        tensors.append(stored(weight_zero_point, codes.zero_point.ravel(), 8))
    made = _prefix(layer)
    quantized_input = _symmetric_input(layer) if scheme.symmetric_activations else _input(layer)
    tensors += quantized_input.tensors
    nodes = [
        *quantized_input.nodes,
        # Computed once, on loading: the kernels take 8-bit integers.
        helper.make_node("Cast", [weight], [f"{made}_weight"], to=TensorProto.INT8),
        helper.make_node(
            INTEGER_OP[layer.node.op_type],
            [
                f"{made}_input",
                f"{made}_weight",
                f"{made}_input_zero_point",
                *([] if codes.zero_point is None else [weight_zero_point]),
            ],
            [f"{made}_sum"],
            layer.node.name,
            **settings,
        ),
        helper.make_node("Cast", [f"{made}_sum"], [f"{made}_float_sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{made}_input_scale", weight_scale], [f"{made}_scale"]),
        helper.make_node("Mul", [f"{made}_float_sum", f"{made}_scale"], [f"{made}_product"]),
    ]
    if layer.bias:
        nodes += [
            helper.make_node("Reshape", [layer.bias, shape], [f"{made}_bias"]),
            helper.make_node("Add", [f"{made}_product", f"{made}_bias"], [layer.output]),
        ]
        tensors.append(numpy_helper.from_array(np.array([-1, *after_channels]), shape))
    else:
        nodes[-1].output[0] = layer.output
    return Part(nodes, tensors)


def _prefix(layer: Layer) -> str:
    """Begin new names so that none is the file's own: a layer's bias is often ``{output}_bias``."""
    return f"{layer.output}_dynamic"


def _input(layer: Layer) -> Part:
    """Quantize the input to uint8, affine over its range."""
    names = [f"{_prefix(layer)}_input{what}" for what in ("", "_scale", "_zero_point")]
    return Part([helper.make_node("DynamicQuantizeLinear", [layer.node.input[0]], names)], [])


def _symmetric_input(layer: Layer) -> Part:
    """Quantize the input to int8, symmetric about zero: scale = max|x| / 127."""
    made = _prefix(layer)
    constants = {
        "qb_int8_limit": np.float32(symmetric_limit(8)),
        "qb_least_scale": np.finfo(np.float32).tiny,
        f"{made}_input_zero_point": np.int8(0),
    }
    limit, least, zero_point = constants
    source, make = layer.node.input[0], helper.make_node
    nodes = [
        make("Abs", [source], [f"{made}_magnitudes"]),
        make("ReduceMax", [f"{made}_magnitudes"], [f"{made}_largest"], keepdims=0),
        make("Div", [f"{made}_largest", limit], [f"{made}_usual_scale"]),
        make("Max", [f"{made}_usual_scale", least], [f"{made}_input_scale"]),
        make("QuantizeLinear", [source, f"{made}_input_scale", zero_point], [f"{made}_input"]),
    ]
    return Part(
        nodes,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
