"""Float ``.tflite`` → quantized ``.tflite`` by ai-edge-quantizer."""

from typing import Any

from qb_cluster.contracts import Arrays, Quantization
from qb_litert.quiet import quiet

_EVERYWHERE = ".*"


def quantize(data: bytes, quantization: Quantization, calibration: Arrays | None) -> bytes:
    """Quantize a float file as asked; the result may still be float, see ``facts``.

    Args:
        data: what ``convert`` gave.
        quantization: something that ``native_support`` said yes to.
        calibration: examples along axis 0, for static activations only.
    """
    with quiet():
        from ai_edge_quantizer import Quantizer

        quantizer = Quantizer(data)
        _add_recipe(quantizer, quantization)
        ranges = None
        if calibration is not None:
            ranges = _true_ranges(data, quantizer.get_quantization_recipe(), calibration)
        result = quantizer.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)


def _add_recipe(quantizer: Any, quantization: Quantization) -> None:
    """Write the recipe. A later rule for one operation goes before the one for all."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    def keep_float(*operations: TFLOperationName) -> None:
        for operation in operations:
            quantizer.update_quantization_recipe(
                _EVERYWHERE, operation, algorithm_key=AlgorithmName.NO_QUANTIZE
            )

    scheme, bits = quantization.scheme, quantization.bits
    everything = TFLOperationName.ALL_SUPPORTED
    granularity = {
        "per_channel": QuantGranularity.CHANNELWISE,
        "per_tensor": QuantGranularity.TENSORWISE,
    }[scheme.granularity]
    match scheme.activations:
        case "none":
            quantizer.add_weight_only_config(_EVERYWHERE, everything, bits.weight, granularity)
        case "dynamic":
            quantizer.add_dynamic_config(_EVERYWHERE, everything, bits.weight, granularity)
            if scheme.granularity == "per_tensor":
                # LiteRT 2.3 runs these without an error and returns garbage.
                keep_float(TFLOperationName.DEPTHWISE_CONV_2D)
        case "static":
            quantizer.add_static_config(
                _EVERYWHERE, everything, bits.activation, bits.weight, granularity
            )
            # The same float interface as the baseline has, so that both are fed and timed
            # alike: rounding inputs in NumPy would cost more than a small model's kernels.
            keep_float(TFLOperationName.INPUT, TFLOperationName.OUTPUT)


def _true_ranges(data: bytes, recipe: Any, calibration: Arrays) -> Any:
    """Find every tensor's smallest and largest value over all calibration examples.

    The quantizer's own ``calibrate`` takes a moving average over the examples instead, which
    clips what most of them hold: 15 dB where the true range gives 40 (digits CNN, w8a8).
    """
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    from qb_litert.runtime import TFLiteExecutable

    rules = RecipeManager()
    rules.load_quantization_recipe(recipe)
    model = TFLiteExecutable(data, threads=1)
    calibrator = Calibrator(data, num_threads=1, qsv_update_func=min_max_update)
    calibrator.calibrate({model.signature: list(model.feeds(calibration))}, rules)
    return calibrator.get_model_qsvs()
