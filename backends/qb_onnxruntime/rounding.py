"""Rounding activations by float operators: what stands in a graph where few bits are simulated.

Each is a function of the file, so that a graph has one node where it rounds; sessions put the
operators in its place. They are those of ``qb_cluster.quantization.affine``, in its precision.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qb_cluster.contracts import Scheme
from qb_cluster.quantization.affine import affine_qparams, symmetric_limit, symmetric_qparams

DOMAIN: Final = "qb_cluster"
_TINY: Final = repr(float(np.finfo(np.float32).tiny))
_BODIES: Final = {
    "RoundStatic": """(values, scale, low, high) => (rounded) {
        steps = Div(values, scale)
        nearest = Round(steps)
        kept = Clip(nearest, low, high)
        rounded = Mul(kept, scale)
    }""",
    "RoundDynamic": f"""(values, levels) => (rounded) {{
        nought = Constant <value = double {{0.0}}> ()
        one = Constant <value = double {{1.0}}> ()
        tiny = Constant <value = double {{{_TINY}}}> ()
        least = ReduceMin <keepdims = 0> (values)
        most = ReduceMax <keepdims = 0> (values)
        least_64 = Cast <to = {TensorProto.DOUBLE}> (least)
        most_64 = Cast <to = {TensorProto.DOUBLE}> (most)
        low = Min(least_64, nought)
        high = Max(most_64, nought)
        range = Sub(high, low)
        step = Div(range, levels)
        is_small = Less(step, tiny)
        scale_64 = Where(is_small, one, step)
        lowest = Div(low, scale_64)
        lowest_integer = Round(lowest)
        minus_levels = Neg(levels)
        minus_zero_point = Clip(lowest_integer, minus_levels, nought)
        largest = Add(minus_zero_point, levels)
        first = Cast <to = {TensorProto.FLOAT}> (minus_zero_point)
        last = Cast <to = {TensorProto.FLOAT}> (largest)
        scale = Cast <to = {TensorProto.FLOAT}> (scale_64)
        steps = Div(values, scale)
        nearest = Round(steps)
        kept = Clip(nearest, first, last)
        rounded = Mul(kept, scale)
    }}""",
    "RoundDynamicSymmetric": f"""(values, limit) => (rounded) {{
        one = Constant <value = double {{1.0}}> ()
        tiny = Constant <value = double {{{_TINY}}}> ()
        sizes = Abs(values)
        most = ReduceMax <keepdims = 0> (sizes)
        most_64 = Cast <to = {TensorProto.DOUBLE}> (most)
        step = Div(most_64, limit)
        is_small = Less(step, tiny)
        scale_64 = Where(is_small, one, step)
        minus_limit = Neg(limit)
        lowest = Sub(minus_limit, one)
        first = Cast <to = {TensorProto.FLOAT}> (lowest)
        last = Cast <to = {TensorProto.FLOAT}> (limit)
        scale = Cast <to = {TensorProto.FLOAT}> (scale_64)
        steps = Div(values, scale)
        nearest = Round(steps)
        kept = Clip(nearest, first, last)
        rounded = Mul(kept, scale)
    }}""",
    "RoundFp16": f"""(values) => (rounded) {{
        short = Cast <to = {TensorProto.FLOAT16}> (values)
        rounded = Cast <to = {TensorProto.FLOAT}> (short)
    }}""",
    "RoundBf16": f"""(values) => (rounded) {{
        short = Cast <to = {TensorProto.BFLOAT16}> (values)
        rounded = Cast <to = {TensorProto.FLOAT}> (short)
    }}""",
}
CASTS: Final = {"fp16": "RoundFp16", "bf16": "RoundBf16"}
"""Functions that round to float formats, by the scheme's number."""


@dataclass(frozen=True, slots=True)
class Rounder:
    """A function of the file, and the numbers that it takes after the values.

    Attributes:
        function: its name.
        constants: NumPy scalars.
    """

    function: str
    constants: tuple[Any, ...] = ()


def static(low: float, high: float, bits: int, *, symmetric: bool) -> Rounder:
    """Round to the 2^bits levels of one quantizer over a range."""
    scale, zero_point = (symmetric_qparams if symmetric else affine_qparams)(low, high, bits)
    # Clipping before the zero point is added and taken away again gives the same numbers.
    ends = -zero_point, 2**bits - 1 - zero_point
    return Rounder("RoundStatic", tuple(map(np.float32, (scale, *ends))))


def dynamic(bits: int, *, symmetric: bool) -> Rounder:
    """Round to the levels of a quantizer over the range of the values: those of one example."""
    if symmetric:
        return Rounder("RoundDynamicSymmetric", (np.float64(symmetric_limit(bits)),))
    return Rounder("RoundDynamic", (np.float64(2**bits - 1),))


def rounds_activations(scheme: Scheme) -> bool:
    """Tell whether a scheme rounds any activations."""
    return scheme.activations != "none" or scheme.number in CASTS


def apply(node: onnx.NodeProto, rounder: Rounder) -> list[TensorProto]:
    """Make an Identity node round, in place; give the stored numbers that it reads."""
    tensors = [
        numpy_helper.from_array(np.asarray(value), f"{node.name}_constant_{i}")
        for i, value in enumerate(rounder.constants)
    ]
    node.op_type, node.domain = rounder.function, DOMAIN
    node.input.extend(tensor.name for tensor in tensors)
    return tensors


def define(model: onnx.ModelProto, functions: Iterable[str]) -> None:
    """Put functions into a file, in place."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    for name in sorted(set(functions)):
        model.functions.append(onnx.parser.parse_function(f"{head}\n{name} {_BODIES[name]}"))
    if model.functions:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
