"""What a ``.tflite`` really holds, read from the flatbuffer."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qb_cluster.contracts import ArtifactFacts
from qb_cluster.contracts.coverage import Coverage, Scope, coverage
from qb_litert.graph import (
    LAYER_KINDS,
    Operation,
    Stored,
    is_constant,
    operations,
    read_model,
    stored_type,
)

_SCALE_BYTES = 4  # float32 in the schema
_ZERO_POINT_BYTES = 8  # int64 in the schema


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A constant tensor that holds weights or a bias.

    Attributes:
        elements: how many numbers it holds.
        rank: number of axes; a bias has one, weights have more.
        stored_bytes: bytes of the numbers, their scales and zero points.
        stored: the type of the numbers.
    """

    elements: int
    rank: int
    stored_bytes: int
    stored: Stored


def float_facts(data: bytes) -> ArtifactFacts:
    """Read a float file: every floating-point constant is a parameter."""
    parameters = _parameters(read_model(data)).values()
    return ArtifactFacts(
        parameters=sum(parameter.elements for parameter in parameters),
        parameter_bytes=sum(parameter.stored_bytes for parameter in parameters),
        quantized_parameters=0,
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
    )


def quantized_facts(
    data: bytes, parameters: int, scope: Scope | None, *, kept_float: Collection[str] = ()
) -> ArtifactFacts:
    """Read a file that should be quantized.

    Half-precision weights count as quantized (that is what the fp16 schemes ask for), but what
    is computed from them is no integer arithmetic.

    Args:
        data: the file.
        parameters: number of parameters of the float file it was made from.
        scope: which activations were to be rounded.
        kept_float: names of weight tensors that were meant to stay float: no fallback.
    """
    model = read_model(data)
    found = _parameters(model).values()
    weights = [parameter for parameter in found if parameter.rank > 1]
    still_float = sum(weight.stored == "float32" for weight in weights)
    products = list(operations(model))
    return ArtifactFacts(
        parameters=parameters,
        parameter_bytes=sum(parameter.stored_bytes for parameter in found),
        # A bias that several products share has integers for each of them.
        quantized_parameters=min(
            parameters, sum(p.elements for p in found if p.stored != "float32")
        ),
        notes=_notes(still_float, len(weights)),
        integer_mac_share=_integer_share(products),
        integer_layer_mac_share=_integer_share(
            [p for p in products if p.has_weights and p.weights not in kept_float]
        ),
        fallback_ops=_fallback_ops(products, kept_float, scope),
        coverage=_coverage(products, kept_float),
        scope=scope,
    )


def simulated_facts(
    data: bytes,
    rounded: Mapping[int, Operation],
    scope: Scope | None,
    notes: tuple[str, ...] = (),
) -> ArtifactFacts:
    """Tell what a simulation rounds in a float file.

    Args:
        data: the float file.
        rounded: operations by the number of the buffer that holds their weights.
        scope: which activations are rounded.
        notes: surprises about the activations.
    """
    found = _parameters(read_model(data))
    weights = {number for number, parameter in found.items() if parameter.rank > 1}
    return ArtifactFacts(
        parameters=sum(parameter.elements for parameter in found.values()),
        parameter_bytes=None,
        quantized_parameters=sum(found[number].elements for number in rounded),
        notes=(*_notes(len(weights - rounded.keys()), len(weights)), *notes),
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
        coverage=coverage(
            (LAYER_KINDS[operation.kind], math.prod(operation.shape), True)
            for operation in rounded.values()
        ),
        scope=scope,
    )


def _notes(still_float: int, weights: int) -> tuple[str, ...]:
    return (f"{still_float} of {weights} weight tensors stay float",) if still_float else ()


def _coverage(products: list[Operation], kept_float: Collection[str]) -> Coverage:
    """Tell which weights were to be quantized, by kind of layer, and which are; each once."""
    stored = {product.weights: product for product in products if product.weights}
    return coverage(
        (LAYER_KINDS[product.kind], math.prod(product.shape), product.stored != "float32")
        for name, product in stored.items()
        if name not in kept_float
    )


def _integer_share(products: list[Operation]) -> float | None:
    """Give the share of multiply-accumulates in integers; ``None`` where there are none."""
    macs = sum(product.macs for product in products)
    integer_macs = sum(product.macs for product in products if product.is_integer)
    return integer_macs / macs if macs else None


def _fallback_ops(
    products: list[Operation], kept_float: Collection[str], scope: Scope | None
) -> tuple[str, ...]:
    """Name what stayed float.

    That is: operations with float32 weights, and, where all activations are to be integers,
    products of two float activations.
    """
    return tuple(
        sorted(
            {
                product.kind
                for product in products
                if product.weights not in kept_float
                and (
                    product.stored == "float32"
                    or (scope == "all" and product.stored is None and not product.is_integer)
                )
            }
        )
    )


def _parameters(model: Any) -> dict[int, _Parameter]:
    """Find the parameters, by the number of their buffer: tied weights share one and count once.

    Shapes, axes and paddings are integer constants too, but have no scale.
    """
    found: dict[int, _Parameter] = {}
    for graph in model.subgraphs:
        block_scales = {
            number: scales for number, t in enumerate(graph.tensors) if (scales := _blocks(t))
        }
        for number, tensor in enumerate(graph.tensors):
            stored = stored_type(tensor)
            if stored is None or not is_constant(model, tensor):
                continue
            if number in block_scales.values():
                continue  # counted with the weights they belong to
            scale_bytes = _scale_bytes(tensor.quantization)
            if number in block_scales:
                scales = graph.tensors[block_scales[number]]
                scale_bytes += len(model.buffers[scales.buffer].data)
            shape = () if tensor.shape is None else tensor.shape
            found[tensor.buffer] = _Parameter(
                elements=math.prod(shape),
                rank=len(shape),
                stored_bytes=len(model.buffers[tensor.buffer].data) + scale_bytes,
                stored=stored,
            )
    return found


def _blocks(tensor: Any) -> int | None:
    """Give the number of the tensor that holds the scales of a blockwise quantized one."""
    details = None if tensor.quantization is None else tensor.quantization.details
    scales = getattr(details, "scales", None)
    return None if scales is None else int(scales)


def _scale_bytes(quantization: Any) -> int:
    """Count the bytes of a tensor's scales and zero points."""
    if quantization is None or quantization.scale is None:
        return 0
    zero_points = () if quantization.zeroPoint is None else quantization.zeroPoint
    return _SCALE_BYTES * len(quantization.scale) + _ZERO_POINT_BYTES * len(zero_points)
