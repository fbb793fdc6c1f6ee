"""Weights, and with fp16 activations too, in floats of fewer bits."""

import ml_dtypes
import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from qb_cluster.contracts import Scheme
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_onnxruntime.dequantize import dequantizing
from qb_onnxruntime.graph import Chosen, Layer, Part, replace_layers
from qb_onnxruntime.quiet import quiet

LARGEST = {"fp8_e4m3": np.float32(448), "fp8_e5m2": np.float32(57_344)}
FP8 = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn all floats of the graph into float16, inputs and outputs excepted.

    Where the CPU has no float16 kernels the session puts casts around float32 ones.
    """
    with quiet():  # it lists every weight that float16 makes zero
        return convert_float_to_float16(model, keep_io_types=True)


def to_fp8(model: onnx.ModelProto, scheme: Scheme, chosen: Chosen) -> None:
    """Store the weights of layers as 8-bit floats times a scale per tensor or channel, in place."""
    dtype = FP8[scheme.number]
    largest = LARGEST[scheme.number]

    def replace(layer: Layer) -> Part | None:
        if layer.output not in chosen:
            return None
        rounded = np.moveaxis(
            quantize_dequantize_weights(
                layer.rows, scheme, chosen[layer.output], name=layer.module
            ),
            0,
            layer.axis,
        )
        # The reference scales a row so that its largest weight is the format's largest number,
        # so the scale can be had back from what it returns.
        per_channel = scheme.granularity == "per_channel"
        others = tuple(i for i in range(rounded.ndim) if i != layer.axis) if per_channel else None
        scale = np.abs(rounded).max(axis=others, keepdims=True) / largest
        scale = np.where(scale > 0, scale, np.float32(1))
        return dequantizing(layer, (rounded / scale).astype(dtype), scale)

    replace_layers(model, replace)
