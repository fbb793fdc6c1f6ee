"""Integer weights, and activations whose ranges are fixed on calibration examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from qb_cluster.contracts import Arrays, Calibration, Quantization
from qb_cluster.contracts.coverage import Scope
from qb_cluster.quantization.affine import affine_qparams
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_onnxruntime.calibration import activations, observe
from qb_onnxruntime.graph import Chosen, Codes, Layer, layers, stored
from qb_onnxruntime.quiet import quiet
from qb_onnxruntime.reason import refusals
from qb_onnxruntime.support import INT8, SCOPE

ACTIVATION_TYPE = {8: QuantType.QUInt8, 16: QuantType.QUInt16}
QUANTIZED = "_quantized"
"""What onnxruntime's quantizer appends to the name of a weight."""

ROOM = 1.001
"""For rounding, in what must fit int32."""

_KEPT: KeptRanges[list[tuple[float, float]]] = KeptRanges()

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Layers, where one factor is a stored weight."""

_FOLLOWING = (
    "Clip",
    "Relu",
    "Flatten",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that follow a layer on the same integers, so that they round nothing anew."""

OPERATORS: Mapping[Scope, Sequence[str]] = {
    "inputs": PRODUCTS,
    "layers": (*PRODUCTS, *_FOLLOWING),
    "all": sorted({*QLinearOpsRegistry, *QDQRegistry}),
}
"""What the quantizer puts quantize/dequantize pairs around; ``all`` is quantize_static's own."""


def quantize_qdq(
    model: onnx.ModelProto, quantization: Quantization, chosen: Chosen, examples: Arrays
) -> onnx.ModelProto:
    """Quantize with onnxruntime's QDQQuantizer (quantize/dequantize pairs around every node).

    Activations are uint8 or uint16, symmetric ones with the zero point in the middle: with int8
    some products stay float on x86, and the others are slower. The ranges are our observers' and
    the integers of the layers' weights our own; whatever else holds constants (sums, embeddings)
    is rounded by onnxruntime's rule, over minimum and maximum.
    """
    scheme, bits = quantization.scheme, quantization.bits
    assert bits.activation is not None
    found = layers(model)
    scope = scheme.scope_or(SCOPE) or SCOPE
    weights = {
        layer.tensor: _Weight(layer, layer.codes(scheme, given), given.weight)
        for layer in found
        if (given := chosen.get(layer.output)) is not None
    }
    per_channel = scheme.granularity == "per_channel"
    with quiet():
        model = onnx.shape_inference.infer_shapes(model)
        ranges = _ranges(model, quantization, examples)
        least = _least_scales(model, quantization, ranges)
        quantizer = QDQQuantizer(
            model,
            per_channel=per_channel,
            reduce_range=False,
            weight_qType=_weight_type(bits.weight),
            activation_qType=ACTIVATION_TYPE[bits.activation],
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=_left_out(model, found, chosen, scope),
            op_types_to_quantize=OPERATORS[scope],
            extra_options={
                # Affine ranges of a ReLU begin at zero and clip as it does; symmetric ones do not.
                "QDQKeepRemovableActivations": scheme.symmetric_activations,
                "OpTypesToExcludeOutputQuantization": PRODUCTS if scope == "inputs" else (),
                # Kernels of 16 bits are float, and their scales too fine for an int32 bias.
                "QuantizeBias": bits.activation == INT8 and bits.weight <= INT8,
                "TensorQuantOverrides": {
                    name: weight.override(least[weight.layer.output], per_channel=per_channel)
                    for name, weight in weights.items()
                },
            },
        )
        with refusals("onnxruntime's static quantizer fails on this graph"):
            quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    _put_integers(quantized, weights)
    return quantized


def _left_out(
    model: onnx.ModelProto, found: Sequence[Layer], chosen: Chosen, scope: Scope
) -> list[str]:
    """Name the nodes that stay float: layers that do, and products without weights."""
    floats = [layer.node.name for layer in found if layer.output not in chosen]
    if scope == "all":
        return floats
    with_weights = {layer.output for layer in found}
    return floats + [
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.output[0] not in with_weights
    ]


@dataclass(frozen=True, slots=True)
class _Weight:
    layer: Layer
    codes: Codes
    bits: int

    def override(self, least: NDArray[np.float64], *, per_channel: bool) -> list[dict[str, Any]]:
        """Tell onnxruntime the scale (no less than this) and zero point of every channel."""
        kind: dict[str, Any] = {"quant_type": _weight_type(self.bits)}
        if per_channel:
            kind["axis"] = self.layer.axis
        scales = self.codes.scale.ravel()
        scales = np.maximum(scales, least if per_channel else least.max()).astype(np.float32)
        zero_points = np.zeros(scales.size, np.int32)
        if self.codes.zero_point is not None:
            zero_points = self.codes.zero_point.ravel()
        return [
            kind | {"scale": scale, "zero_point": int(zero_point)}
            for scale, zero_point in zip(scales, zero_points, strict=True)
        ]

    def integers(self, scale: NDArray[np.float32]) -> NDArray[np.int32]:
        """Give the integers for the scale that the file holds.

        It is ours, but for channels so small beside their bias that it was widened.
        """
        ours = self.codes.scale
        ratio = ours.astype(np.float64) / scale.reshape(ours.shape)
        zero_point = 0 if self.codes.zero_point is None else self.codes.zero_point
        widened: NDArray[np.int32] = np.rint((self.codes.integers - zero_point) * ratio)
        return (widened + zero_point).astype(np.int32)


def _weight_type(bits: int) -> Any:
    return QuantType.QInt16 if bits == 16 else QuantType.QInt8


def _ranges(
    model: onnx.ModelProto, quantization: Quantization, examples: Arrays
) -> dict[str, tuple[np.float32, np.float32]]:
    assert quantization.bits.activation is not None
    calibration = quantization.calibration or Calibration()
    bits, symmetric = quantization.bits.activation, quantization.scheme.symmetric_activations
    names = activations(model, OPERATORS["all"])
    places = [(name, bits) for name in names]
    found = _KEPT.observed(
        lambda: observe(model, places, examples, calibration, symmetric=symmetric),
        model=model.SerializeToString(),
        examples=examples,
        calibration=calibration,
        bits=bits,
        symmetric=symmetric,
    )
    observed = dict(zip(names, found, strict=True))
    if symmetric:
        middle = 2 ** (bits - 1)
        largest = {name: max(map(abs, ends)) for name, ends in observed.items()}
        observed = {name: (-end * middle / (middle - 1), end) for name, end in largest.items()}
    return {name: (np.float32(low), np.float32(high)) for name, (low, high) in observed.items()}


def _least_scales(
    model: onnx.ModelProto,
    quantization: Quantization,
    ranges: Mapping[str, tuple[np.float32, np.float32]],
) -> dict[str, NDArray[np.float64]]:
    """Give the weight scales below which a layer's bias would not fit int32, by its output.

    A bias is stored with the scale of the input times that of the weight. onnxruntime's
    quantizer widens the scales of symmetric weights, but clips the bias of affine ones.
    """
    assert quantization.bits.activation is not None
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    least = {}
    for layer in layers(model):
        least[layer.output] = np.zeros(1)
        if layer.bias in tensors and layer.node.input[0] in ranges:
            low, high = map(float, ranges[layer.node.input[0]])
            scale, _ = affine_qparams(low, high, quantization.bits.activation)
            bias = numpy_helper.to_array(tensors[layer.bias]).astype(np.float64)
            least[layer.output] = ROOM * np.abs(bias) / (np.iinfo(np.int32).max * scale)
    return least


def _put_integers(model: onnx.ModelProto, weights: Mapping[str, _Weight]) -> None:
    """Put our integers in the place of onnxruntime's, packed where they are below 8 bits.

    Those are widened to int8 once, on loading, and then it is the int8 model, with its int8
    kernels. The 4-bit files of onnxruntime's own quantizer run in float, dequantizing at every
    call.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    widen = []
    for name, weight in weights.items():
        scale = numpy_helper.to_array(tensors[f"{name}_scale"])
        held = f"{name}{QUANTIZED}"
        packed = f"{held}_packed" if weight.bits < INT8 else held
        tensors[held].CopyFrom(stored(packed, weight.integers(scale), weight.bits))
        if packed != held:
            widen.append(helper.make_node("Cast", [packed], [held], to=TensorProto.INT8))
    nodes = [*widen, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
