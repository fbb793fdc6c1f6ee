"""From a float ONNX file and a scheme to a quantized ONNX file."""

from qb_cluster.contracts import Arrays, Quantization
from qb_cluster.errors import UnsupportedError
from qb_onnxruntime.dynamic import quantize_dynamic
from qb_onnxruntime.graph import layers, load
from qb_onnxruntime.static import quantize_qdq
from qb_onnxruntime.weight_only import quantize_weight_only


def quantize(
    data: bytes,
    quantization: Quantization,
    calibration: Arrays | None,
    *,
    block_size: int,
    accuracy_level: int,
) -> bytes:
    """Quantize.

    Args:
        data: the float file.
        quantization: what ``support`` said yes to.
        calibration: examples by input name, for static activations only.
        block_size: see ``OnnxRuntimeBackend``.
        accuracy_level: the same.

    Raises:
        UnsupportedError: the model has no layer that could be quantized.
    """
    scheme, bits = quantization.scheme, quantization.bits
    model = load(data, bits.weight)
    if not layers(model):
        raise UnsupportedError(
            "onnxruntime quantizes Conv, MatMul and Gemm nodes with stored float32 weights, and "
            "this model has none"
        )
    per_channel = scheme.granularity == "per_channel"
    if scheme.activations == "none":
        quantize_weight_only(
            model,
            bits.weight,
            per_channel=per_channel,
            block_size=block_size,
            accuracy_level=accuracy_level,
        )
    elif scheme.activations == "dynamic":
        quantize_dynamic(model, bits.weight, per_channel=per_channel)
    else:
        assert bits.activation is not None
        assert calibration is not None
        model = quantize_qdq(
            model,
            bits.weight,
            bits.activation,
            per_channel=per_channel,
            calibration=calibration,
        )
    return bytes(model.SerializeToString())
