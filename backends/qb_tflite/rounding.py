"""Operators that round a float tensor to what few bits can hold, written into a ``.tflite``.

The same arithmetic as ``qb_cluster.quantization.affine``, in float32 all the way: LiteRT's ROUND
rounds half to even.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import NumberFormat

_BROADCAST_AXES: Final = 4
"""So many the kernels of element-wise operators take where one factor is a single number."""
_TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Static:
    """One quantizer: see ``affine_qparams``."""

    scale: float
    zero_point: int
    bits: int


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A quantizer over the range of whatever comes."""

    bits: int
    symmetric: bool


@dataclass(frozen=True, slots=True)
class Cast:
    """A float format of 16 bits."""

    number: NumberFormat


Rounding = Static | Dynamic | Cast


class Editor:
    """Adds operators to one subgraph of a model.

    Args:
        model: as ``read_model`` gives it, changed in place.
        graph: one of its subgraphs; new operators come into it by whoever calls ``taken``.
    """

    def __init__(self, model: Any, graph: Any) -> None:
        self._model, self._graph = model, graph
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], int] = {}
        self._operators: list[Any] = []

    def taken(self) -> list[Any]:
        """Give the operators that were made since the last call, in the order they run."""
        made, self._operators = self._operators, []
        return made

    def new_tensor_like(self, number: int, ending: str) -> int:
        """Add a float32 tensor of another's shape; give its number."""
        like = self._graph.tensors[number]
        shape = () if like.shape is None else tuple(int(size) for size in like.shape)
        name = f"{like.name.decode()}/{ending}"
        return self._tensor(shape, name, signature=like.shapeSignature)

    def round(self, source: int, target: int, rounding: Rounding) -> None:
        """Add operators that round the tensor ``source`` into the tensor ``target``."""
        shape = self._graph.tensors[source].shape
        if shape is None or len(shape) <= _BROADCAST_AXES:
            self._round(source, target, rounding)
            return
        sizes = [int(size) for size in shape]
        flat = self._reshaped(source, [int(np.prod(sizes))])
        rounded = self.new_tensor_like(flat, "rounded")
        self._round(flat, rounded, rounding)
        self._reshape(rounded, target, sizes)

    def _round(self, source: int, target: int, rounding: Rounding) -> None:
        match rounding:
            case Static(scale, zero_point, bits):
                # Shifted by the zero point, which is an integer: the same numbers.
                steps = self._apply("ROUND", self._apply("DIV", source, self._number(scale)))
                steps = self._apply("MAXIMUM", steps, self._number(-zero_point))
                steps = self._apply("MINIMUM", steps, self._number(2**bits - 1 - zero_point))
                self._write("MUL", target, steps, self._number(scale))
            case Dynamic(bits, symmetric):
                scale_at, zero_at = self._qparams(source, bits, symmetric=symmetric)
                steps = self._apply("ROUND", self._apply("DIV", source, scale_at))
                steps = self._apply("ADD", steps, zero_at)
                steps = self._apply("MAXIMUM", steps, self._number(0))
                steps = self._apply("MINIMUM", steps, self._number(2**bits - 1))
                self._write("MUL", target, self._apply("SUB", steps, zero_at), scale_at)
            case Cast(number):
                self._cast(source, target, number)

    def _qparams(self, source: int, bits: int, *, symmetric: bool) -> tuple[int, int]:
        """Add what finds scale and zero point of a tensor's own range; one number each."""
        low, high = self._extreme("REDUCE_MIN", source), self._extreme("REDUCE_MAX", source)
        zero = self._number(0)
        if symmetric:
            largest = self._apply("MAXIMUM", self._apply("SUB", zero, low), high)
            scale = self._apply("DIV", largest, self._number(2 ** (bits - 1) - 1))
            return self._usable(scale), self._number(2 ** (bits - 1))
        low = self._apply("MINIMUM", low, zero)
        high = self._apply("MAXIMUM", high, zero)
        span = self._apply("SUB", high, low)
        scale = self._usable(self._apply("DIV", span, self._number(2**bits - 1)))
        below = self._apply("DIV", self._apply("SUB", zero, low), scale)
        zero_point = self._apply("MAXIMUM", self._apply("ROUND", below), zero)
        return scale, self._apply("MINIMUM", zero_point, self._number(2**bits - 1))

    def _usable(self, scale: int) -> int:
        """Add what makes the scale of a range that is all zero, or denormal, 1."""
        from ai_edge_litert.schema_py_generated import TensorType

        small = self._tensor((), "small", kind=TensorType.BOOL)
        self._write("LESS", small, scale, self._number(_TINY))
        return self._apply("SELECT_V2", small, self._number(1), scale)

    def _extreme(self, kind: str, source: int) -> int:
        shape = self._graph.tensors[source].shape
        axes = np.arange(0 if shape is None else len(shape), dtype=np.int32)
        found = self._tensor((), kind.lower())
        self._write(kind, found, source, self._constant(axes))
        return found

    def _cast(self, source: int, target: int, number: str) -> None:
        from ai_edge_litert.schema_py_generated import TensorType

        kind = {"fp16": TensorType.FLOAT16, "bf16": TensorType.BFLOAT16}[number]
        narrow = self.new_tensor_like(source, number)
        self._graph.tensors[narrow].type = kind
        self._write("CAST", narrow, source)
        self._write("CAST", target, narrow)

    def _reshaped(self, source: int, sizes: list[int]) -> int:
        target = self._tensor(tuple(sizes), f"{self._graph.tensors[source].name.decode()}/flat")
        self._reshape(source, target, sizes)
        return target

    def _reshape(self, source: int, target: int, sizes: list[int]) -> None:
        self._write("RESHAPE", target, source, self._constant(np.array(sizes, np.int32)))

    def _apply(self, kind: str, *inputs: int) -> int:
        """Add an element-wise operator; give its output, as large as its largest input."""
        largest = max(inputs, key=self._rank)
        target = self.new_tensor_like(largest, kind.lower())
        self._write(kind, target, *inputs)
        return target

    def _rank(self, number: int) -> int:
        shape = self._graph.tensors[number].shape
        return 0 if shape is None else len(shape)

    def _write(self, kind: str, target: int, *inputs: int) -> None:
        """Add an operator that writes a tensor."""
        from ai_edge_litert import schema_py_generated as schema

        operator = schema.OperatorT()
        operator.opcodeIndex = self._operator_code(kind)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([target], np.int32)
        if name := _OPTIONS.get(kind):
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(schema, f"{name}T")()
        if kind == "CAST":
            tensors = self._graph.tensors
            operator.builtinOptions.inDataType = tensors[inputs[0]].type
            operator.builtinOptions.outDataType = tensors[target].type
        self._operators.append(operator)

    def _operator_code(self, kind: str) -> int:
        from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

        wanted = getattr(BuiltinOperator, kind)
        for number, code in enumerate(self._model.operatorCodes):
            if max(code.deprecatedBuiltinCode, code.builtinCode) == wanted:
                return number
        made = OperatorCodeT()
        made.builtinCode, made.version = wanted, 1
        made.deprecatedBuiltinCode = min(wanted, 127)  # the largest that old readers know
        self._model.operatorCodes.append(made)
        return len(self._model.operatorCodes) - 1

    def _number(self, value: float) -> int:
        return self._constant(np.array(value, np.float32))

    def _constant(self, values: NDArray[Any]) -> int:
        """Add a constant, once for equal ones; give its number."""
        from ai_edge_litert.schema_py_generated import BufferT, TensorType

        key = (values.tobytes(), values.dtype.str, values.shape)
        if key not in self._constants:
            buffer = BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            kind = TensorType.INT32 if values.dtype == np.int32 else TensorType.FLOAT32
            number = self._tensor(values.shape, "constant", kind=kind)
            self._graph.tensors[number].buffer = len(self._model.buffers) - 1
            self._constants[key] = number
        return self._constants[key]

    def _tensor(
        self, shape: tuple[int, ...], name: str, *, kind: int | None = None, signature: Any = None
    ) -> int:
        from ai_edge_litert.schema_py_generated import TensorT, TensorType

        tensor = TensorT()
        tensor.shape = np.array(shape, np.int32)
        tensor.shapeSignature = signature
        tensor.type = TensorType.FLOAT32 if kind is None else kind
        tensor.buffer = 0  # which the schema keeps empty, for what holds no constant
        tensor.name = f"{name}/{len(self._graph.tensors)}".encode()
        tensor.hasRank = True
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


_OPTIONS: Final = {
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "LESS": "LessOptions",
    "SELECT_V2": "SelectV2Options",
    "RESHAPE": "ReshapeOptions",
    "CAST": "CastOptions",
}
"""What the schema calls the options of operators; the rest have none."""
