"""From a float ONNX file and a scheme to a quantized ONNX file."""

import onnx

from qb_cluster.contracts import Arrays, Bits, Quantization
from qb_cluster.errors import UnsupportedError
from qb_onnxruntime.coverage import covered, kind_of, weights
from qb_onnxruntime.dynamic import quantize_dynamic
from qb_onnxruntime.float_formats import to_fp8, to_fp16
from qb_onnxruntime.graph import layers, load, unshare_biases
from qb_onnxruntime.reason import refusals
from qb_onnxruntime.static import quantize_qdq
from qb_onnxruntime.subgraphs import sort_nodes
from qb_onnxruntime.support import widths
from qb_onnxruntime.tables import quantize_tables
from qb_onnxruntime.weight_only import quantize_weight_only


def quantize(
    data: bytes, quantization: Quantization, calibration: Arrays | None, *, accuracy_level: int
) -> bytes:
    """Quantize.

    Args:
        data: the float file.
        quantization: what ``support`` said yes to.
        calibration: examples by input name, for static activations only.
        accuracy_level: see ``OnnxRuntimeBackend``.

    Raises:
        UnsupportedError: the model has no layer that could be quantized, or onnxruntime's own
            quantizer fails on its graph.
        PlugInError: the scheme's ``layers`` name none of the model's.
        NonFiniteError: weights or calibration activations hold NaN or infinity.
        DataError: there are no calibration examples.
    """
    scheme = quantization.scheme
    model = load(data, [bits.weight for bits in widths(quantization)])
    chosen = choose(model, quantization)
    if scheme.number == "fp16":
        with refusals("onnxruntime cannot turn this graph into float16"):
            model = to_fp16(model)
    elif scheme.number != "integer":
        to_fp8(model, scheme, chosen)
    elif scheme.activations == "none":
        quantize_weight_only(model, scheme, chosen, accuracy_level)
    elif scheme.activations == "dynamic":
        quantize_dynamic(model, scheme, chosen)
    else:
        assert calibration is not None
        unshare_biases(model)
        model = quantize_qdq(model, quantization, chosen, calibration)
    if scheme.number == "integer":
        quantize_tables(model, quantization)
    sort_nodes(model.graph)
    return bytes(model.SerializeToString())


def choose(model: onnx.ModelProto, quantization: Quantization) -> dict[str, Bits]:
    """Give the bits of every product with weights that is to be quantized, by its output.

    Raises:
        UnsupportedError: the model has none, or layers that share a weight get different bits.
        PlugInError: a pattern of the scheme's ``layers`` matches nothing, or all stay float.
    """
    if not weights(model):
        raise UnsupportedError(
            "onnxruntime quantizes nodes with stored float32 weights (Conv, MatMul, Gemm, Gather, "
            "LSTM and alike), and this model has none"
        )
    covered(model, quantization)
    given = {
        layer.output: quantization.layer_bits(layer.module)
        for layer in layers(model)
        if kind_of(layer) in quantization.scheme.weights
    }
    return {output: bits for output, bits in given.items() if bits is not None}
