"""Integer weights, and activations whose ranges are fixed on calibration examples."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import MinMaxCalibrater, QuantType, quantize_static, save_tensors_data

from qb_cluster.contracts import Arrays
from qb_onnxruntime.graph import layers, stored
from qb_onnxruntime.quiet import quiet
from qb_onnxruntime.runtime import session_options

CALIBRATION_BATCH = 32
ACTIVATION_TYPE = {8: QuantType.QUInt8, 16: QuantType.QUInt16}
QUANTIZED = "_quantized"
"""What onnxruntime's quantizer appends to the name of a weight."""


def quantize_qdq(
    model: onnx.ModelProto,
    weight_bits: int,
    activation_bits: int,
    *,
    per_channel: bool,
    calibration: Arrays,
) -> onnx.ModelProto:
    """Quantize with onnxruntime's quantize_static (quantize/dequantize pairs around every node).

    Activations are uint8 or uint16 over their true minimum and maximum; int8 gave the same SQNR
    and speed on x86. Weights below 8 bits are quantized into int8 first and packed afterwards.
    """
    scales = _weight_scales(model, weight_bits, per_channel=per_channel)
    with tempfile.TemporaryDirectory(prefix="qb_onnxruntime.") as folder, quiet():
        source, ranges, target = (Path(folder, name) for name in ("f.onnx", "ranges", "q.onnx"))
        onnx.save(model, source)
        _save_ranges(source, ranges, calibration)
        quantize_static(
            source,
            target,
            per_channel=per_channel,
            activation_type=ACTIVATION_TYPE[activation_bits],
            weight_type=_weight_type(weight_bits),
            extra_options={"TensorQuantOverrides": scales},
            calibration_cache_path=ranges,
        )
        quantized = onnx.load(target)
    if weight_bits < 8:
        _pack(quantized, {f"{name}{QUANTIZED}" for name in scales}, weight_bits)
    return quantized


def _weight_type(bits: int) -> Any:
    return QuantType.QInt16 if bits == 16 else QuantType.QInt8


def _weight_scales(
    model: onnx.ModelProto, bits: int, *, per_channel: bool
) -> dict[str, list[dict[str, Any]]]:
    """Name the scale of every weight, so that it follows our rule at every width."""
    scales = {}
    for layer in layers(model):
        _, scale = layer.quantized(bits, per_channel=per_channel)
        kind = {"quant_type": _weight_type(bits), "zero_point": 0}
        if per_channel:
            kind["axis"] = layer.axis
        scales[str(layer.node.input[1])] = [kind | {"scale": value} for value in scale.ravel()]
    return scales


class _Batches:
    """Calibration examples as onnxruntime reads them: a batch a call, ``None`` at the end."""

    def __init__(self, examples: Arrays) -> None:
        count = len(next(iter(examples.values())))
        self._batches = iter(
            {name: array[start : start + CALIBRATION_BATCH] for name, array in examples.items()}
            for start in range(0, count, CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def _save_ranges(source: Path, ranges: Path, calibration: Arrays) -> None:
    """Find the minimum and maximum of every activation over all examples."""
    calibrater = MinMaxCalibrater(source, augmented_model_path=str(source.with_suffix(".minmax")))
    calibrater.augment_graph()
    # Its own session would take a thread per core, whatever else runs here.
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    calibrater.infer_session = ort.InferenceSession(
        calibrater.augmented_model_path, options, providers=["CPUExecutionProvider"]
    )
    calibrater.collect_data(_Batches(calibration))
    save_tensors_data(calibrater.compute_data(), ranges)


def _pack(model: onnx.ModelProto, weights: set[str], bits: int) -> None:
    """Store int8 tensors in fewer bits, in place.

    A session widens them once, on loading, and then is the int8 model, with its int8 kernels.
    The 4-bit files of onnxruntime's own quantizer run in float, dequantizing at every call.
    """
    graph = model.graph
    widen = []
    for tensor in graph.initializer:
        if tensor.name in weights:
            name = tensor.name
            integers = numpy_helper.to_array(tensor).astype(np.int32)
            tensor.CopyFrom(stored(f"{name}_packed", integers, bits))
            widen.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.INT8))
    nodes = [*widen, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
