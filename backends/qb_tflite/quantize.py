"""Float ``.tflite`` → quantized ``.tflite`` by ai-edge-quantizer."""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from qb_cluster.causes import cause
from qb_cluster.contracts import Arrays, Bits, Calibration, LoadModel, Quantization
from qb_cluster.errors import NonFiniteError, UnsupportedError
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_litert.graph import (
    Operation,
    operations,
    read_model,
    with_signature,
    written,
)
from qb_litert.quiet import quiet
from qb_tflite.biases import flatten_biases
from qb_tflite.following import following
from qb_tflite.layers import bits_of_weights
from qb_tflite.ranges import Ranges, activation_ranges, weight_ranges, without_range
from qb_tflite.support import SCOPE, SYMMETRIC_ACTIVATION_BITS

_KEPT: Final[KeptRanges[Ranges]] = KeptRanges()
_EVERYWHERE: Final = ".*"
_DEPTHWISE: Final = "DEPTHWISE_CONV_2D"
_BLOCKWISE: Final = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP")
_LAYERS: Final = (*("CONV_2D", "CONV_2D_TRANSPOSE", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),)
_RECIPE_NAMES: Final = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
"""Where ai-edge-quantizer calls an operation otherwise than TFLite's schema."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What came of it.

    Attributes:
        data: the file. It may still be float: see ``facts``.
        kept_float: names of the weights that the scheme's layers leave float.
    """

    data: bytes
    kept_float: frozenset[str]


def quantize(
    data: bytes,
    model: LoadModel,
    quantization: Quantization,
    calibration: Arrays | None,
    *,
    allow_known_broken: bool,
) -> Quantized:
    """Quantize a float file as asked.

    Args:
        data: what ``convert`` gave.
        model: loaded only to know the names of its layers, when the scheme asks for some.
        quantization: something that ``native_support`` said yes to.
        calibration: examples along axis 0, for static activations only.
        allow_known_broken: quantize even what the kernels are known to compute wrongly.

    Raises:
        UnsupportedError: ai-edge-quantizer cannot do this to this model.
        NonFiniteError: weights are NaN or infinite, or calibration makes the model NaN.
        DataError: there are no calibration examples.
        PlugInError: a layer pattern matches nothing.
    """
    with quiet():
        from ai_edge_quantizer import Quantizer

        graph = read_model(data)
        if flatten_biases(graph):
            data = written(graph)
        weighted = [operation for operation in operations(graph) if operation.weights]
        bits = bits_of_weights(weighted, model, quantization)
        covered = [op for op in weighted if bits[op.weights] and op.values is not None]
        _check_weights(covered, quantization)
        ranges: Ranges = {}
        if quantization.scheme.activations == "static":
            ranges = _activation_ranges(data, graph, quantization, calibration)
        ranges |= _own_weight_ranges(covered, bits, quantization)
        quantizer = Quantizer(data if graph.signatureDefs else with_signature(graph))
        _add_recipe(quantizer, quantization)
        _add_layers(quantizer, weighted, bits, quantization)
        if _rounds_layers(quantization):
            _add_following(quantizer, graph, weighted, bits, quantization)
        if quantization.scheme.activations == "static":
            _leave_out_what_has_no_range(quantizer, graph, ranges)
        if not allow_known_broken:
            _leave_out_what_is_broken(quantizer, quantization)
        try:
            result = quantizer.quantize(ranges, enable_progress_report=False)
        except Exception as error:  # the quantizer raises what it likes
            raise UnsupportedError(
                f"ai-edge-quantizer cannot quantize this model to {quantization.bits} "
                f"({cause(error)}); use another scheme, or leave tflite out of the backends of "
                "this model"
            ) from error
    kept = frozenset(name for name, layer in bits.items() if layer is None)
    return Quantized(bytes(result.quantized_model), kept)


def _activation_ranges(
    data: bytes, graph: Any, quantization: Quantization, calibration: Arrays | None
) -> Ranges:
    how, bits = quantization.calibration or Calibration(), quantization.bits.activation
    symmetric = quantization.scheme.symmetric_activations or bits in SYMMETRIC_ACTIVATION_BITS
    return dict(
        _KEPT.observed(
            lambda: activation_ranges(data, graph, quantization, calibration),
            model=data,
            examples=calibration or {},
            calibration=how,
            bits=bits,
            symmetric=symmetric,
        )
    )


def _check_weights(covered: list[Operation], quantization: Quantization) -> None:
    """Refuse weights that cannot be quantized.

    Raises:
        NonFiniteError: they are NaN or infinite.
        UnsupportedError: their rows are no multiple of the group size.
    """
    group = quantization.scheme.group_size
    for operation in covered:
        assert operation.values is not None
        if not np.isfinite(operation.values).all():
            raise NonFiniteError(
                f"weights '{operation.weights}' are NaN or infinite in places; load or train the "
                "model anew, or leave this layer float under the scheme's layers"
            )
        if group and operation.kind in _BLOCKWISE and operation.shape[-1] % group:
            raise UnsupportedError(
                f"weights '{operation.weights}' have rows of {operation.shape[-1]}, no multiple "
                f"of the group size {group}; take a smaller group_size, or leave this layer "
                "float under the scheme's layers"
            )


def _own_weight_ranges(
    covered: list[Operation], bits: dict[str, Bits | None], quantization: Quantization
) -> Ranges:
    """Give ranges where the scheme's are not those the quantizer finds itself."""
    scheme = quantization.scheme
    if scheme.weight_range == "minmax" and (scheme.narrow_range or not scheme.symmetric):
        return {}
    if scheme.granularity == "per_group":
        covered = [operation for operation in covered if operation.kind in _BLOCKWISE]
    ranges: Ranges = {}
    for operation in covered:
        layer = bits[operation.weights]
        assert layer is not None
        ranges |= weight_ranges([operation], replace(quantization, bits=layer))
    return ranges


def _add_recipe(quantizer: Any, quantization: Quantization) -> None:
    """Write the rules for the whole model. A later rule goes before an earlier one."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    everything = TFLOperationName.ALL_SUPPORTED
    if quantization.scheme.number == "fp16":
        quantizer.add_weight_only_config(
            _EVERYWHERE, everything, 16, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
        return
    kinds = [everything]
    if _rounds_layers(quantization):
        kinds = [TFLOperationName(kind) for kind in _LAYERS]
    for kind in kinds:
        with suppress(ValueError):  # no kernel for this kind at these bits: it stays float
            quantizer.update_quantization_recipe(
                _EVERYWHERE, kind, _config(quantization, quantization.bits)
            )
    if quantization.scheme.number == "integer" and quantization.scheme.activations != "none":
        # No product, so no integer arithmetic: the weights alone.
        rows = replace(
            quantization.scheme,
            activations="none",
            scope=None,
            layers=(),
            granularity="per_channel",
            group_size=None,
        )
        alone = replace(quantization, scheme=rows, bits=Bits(quantization.bits.weight))
        with suppress(ValueError):  # no such bits: it stays float, as the facts say
            quantizer.update_quantization_recipe(
                _EVERYWHERE, TFLOperationName.EMBEDDING_LOOKUP, _config(alone, alone.bits)
            )
    if quantization.scheme.activations == "static":
        # The same float interface as the baseline has, so that both are fed and timed
        # alike: rounding inputs in NumPy would cost more than a small model's kernels.
        _keep_float(quantizer, _EVERYWHERE, TFLOperationName.INPUT)
        _keep_float(quantizer, _EVERYWHERE, TFLOperationName.OUTPUT)


def _add_layers(
    quantizer: Any,
    weighted: list[Operation],
    bits: dict[str, Bits | None],
    quantization: Quantization,
) -> None:
    """Write a rule for each layer that has bits of its own, by the names of its outputs."""
    for operation in weighted:
        layer = bits[operation.weights]
        if layer == quantization.bits:
            continue
        scope, kind = f"^{_scope(operation.outputs)}$", _recipe_name(operation)
        if layer is None:
            _keep_float(quantizer, scope, kind)
            continue
        try:
            quantizer.update_quantization_recipe(scope, kind, _config(quantization, layer))
        except ValueError:  # no kernel for this kind at these bits: float, like everywhere else
            _keep_float(quantizer, scope, kind)


def _add_following(
    quantizer: Any,
    graph: Any,
    weighted: list[Operation],
    bits: dict[str, Bits | None],
    quantization: Quantization,
) -> None:
    """Write rules for what follows layers on their integers.

    One for each kind and bits, not for each operation: the quantizer tries every rule on every
    operation.
    """
    from ai_edge_quantizer.qtyping import TFLOperationName

    layers = {
        operation.place: own
        for operation in weighted
        if (own := bits[operation.weights]) and _has_kernel(operation, quantization, own)
    }
    scopes: dict[tuple[str, Bits], list[str]] = {}
    for kind, outputs, own in following(graph, layers):
        scopes.setdefault((kind, own), []).append(_scope(outputs))
    for (kind, own), names in scopes.items():
        quantizer.update_quantization_recipe(
            f"^(?:{'|'.join(names)})$", TFLOperationName(kind), _config(quantization, own)
        )


def _has_kernel(operation: Operation, quantization: Quantization, bits: Bits) -> bool:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName, check_op_quantization_config

    kind, config = _recipe_name(operation), _config(quantization, bits)
    if kind not in _LAYERS:
        return False
    try:
        check_op_quantization_config(AlgorithmName.MIN_MAX_UNIFORM_QUANT, kind, config)
    except ValueError:
        return False
    return True


def _rounds_layers(quantization: Quantization) -> bool:
    """Tell whether static ranges are for inputs and outputs of layers alone."""
    scheme = quantization.scheme
    return scheme.activations == "static" and scheme.scope_or(SCOPE) == "layers"


def _recipe_name(operation: Operation) -> Any:
    """Give what ai-edge-quantizer calls an operation."""
    from ai_edge_quantizer.qtyping import TFLOperationName

    return TFLOperationName(_RECIPE_NAMES.get(operation.kind, operation.kind))


def _scope(outputs: tuple[str, ...]) -> str:
    """Give the pattern of what ai-edge-quantizer calls an operation's scope."""
    return "".join(f"{re.escape(name)};" for name in outputs)


def _leave_out_what_has_no_range(quantizer: Any, graph: Any, ranges: Ranges) -> None:
    from ai_edge_quantizer.qtyping import TFLOperationName

    if scopes := [_scope(outputs) for outputs in without_range(graph, ranges)]:
        _keep_float(quantizer, f"^(?:{'|'.join(scopes)})$", TFLOperationName.ALL_SUPPORTED)


def _leave_out_what_is_broken(quantizer: Any, quantization: Quantization) -> None:
    """Keep float what LiteRT 2.3 runs without an error, and returns garbage for."""
    from ai_edge_quantizer.qtyping import TFLOperationName

    scheme = quantization.scheme
    if (scheme.activations, scheme.granularity) == ("dynamic", "per_tensor"):
        # A scope of its own, written last: it goes before the rules of single layers.
        _keep_float(quantizer, "^.*$", TFLOperationName(_DEPTHWISE))


def _config(quantization: Quantization, bits: Bits) -> Any:
    """Give ai-edge-quantizer's words for a scheme at these bits."""
    from ai_edge_quantizer.qtyping import (
        ComputePrecision,
        OpQuantizationConfig,
        QuantGranularity,
        TensorQuantizationConfig,
    )

    scheme = quantization.scheme
    granularity = {
        "per_channel": "CHANNELWISE",
        "per_tensor": "TENSORWISE",
        "per_group": f"BLOCKWISE_{scheme.group_size}",
    }[scheme.granularity]
    activations = None
    if scheme.activations == "static":
        assert bits.activation is not None
        symmetric = scheme.symmetric_activations or bits.activation in SYMMETRIC_ACTIVATION_BITS
        activations = TensorQuantizationConfig(bits.activation, symmetric=symmetric)
    float_arithmetic = scheme.activations == "none"
    return OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=TensorQuantizationConfig(
            bits.weight, symmetric=scheme.symmetric, granularity=QuantGranularity(granularity)
        ),
        compute_precision=ComputePrecision.FLOAT if float_arithmetic else ComputePrecision.INTEGER,
        explicit_dequantize=float_arithmetic,
    )


def _keep_float(quantizer: Any, scope: str, kind: Any) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    quantizer.update_quantization_recipe(scope, kind, algorithm_key=AlgorithmName.NO_QUANTIZE)
