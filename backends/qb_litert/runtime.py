"""Running a ``.tflite``: needs Python, NumPy and ai-edge-litert or tflite-runtime.

This file imports nothing else of this project and does with Python 3.8, so that it can be copied
to a board alone.
"""
# ruff: noqa: B905  zip() has no strict= before Python 3.10

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

_IDENTIFIER = b"TFL3"
_INT4 = 17  # in the schema's TensorType; the interpreter calls it int8


@dataclass(frozen=True)
class _Port:
    """One input or output of the model.

    Attributes:
        name: its name in the signature.
        index: the tensor's number.
        dtype: what the tensor holds.
        scale: size of one integer step; 0 where the tensor is not quantized.
        zero_point: the integer that stands for 0.0.
    """

    name: str
    index: int
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn values into what the tensor takes."""
        if not self.scale:
            return np.ascontiguousarray(values, self.dtype)
        limits = np.iinfo(self.dtype)
        steps: NDArray[np.float32] = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.clip(steps, limits.min, limits.max).astype(self.dtype)

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Turn what the tensor gave into values."""
        values = stored.astype(np.float32, copy=False)
        return (values - self.zero_point) * np.float32(self.scale) if self.scale else values


def installed() -> tuple[str, str]:
    """Give name and version of the runtime that runs files here; the version may be unknown: "".

    Raises:
        ImportError: none is installed, or it cannot be loaded.
    """
    try:
        import ai_edge_litert.interpreter  # noqa: F401

        name = "ai-edge-litert"
    except ModuleNotFoundError:
        import tflite_runtime.interpreter  # noqa: F401

        name = "tflite-runtime"
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:  # built from source, as distributions for boards do
        return name, ""


def load(data: bytes, threads: int) -> TFLiteExecutable:
    """Make a file ready to run; what an agent on a board calls. Raises as the class does."""
    return TFLiteExecutable(data, threads)


class TFLiteExecutable:
    """A ``.tflite`` file of batch 1, ready to run by its first signature, or without one.

    Args:
        data: the file.
        threads: threads that its kernels may use.
        keep_tensors: whether ``tensor`` can tell what a run left inside the model. It costs
            memory and time.
        reference_kernels: whether the plain kernels that define the format compute, in place of
            the fast ones.

    Attributes:
        signature: name of the signature; empty where the file has none.

    Raises:
        ValueError: the file is cut off or no TFLite model, or an input or output has no batch
            axis of 1.
        NotImplementedError: only tflite-runtime is installed, and is known to run this file
            wrongly.
        RuntimeError: the runtime lacks a kernel.
    """

    def __init__(
        self,
        data: bytes,
        threads: int,
        *,
        keep_tensors: bool = False,
        reference_kernels: bool = False,
    ) -> None:
        _require_whole(data)
        self._interpreter = _interpreter(data, threads, keep_tensors, reference_kernels)
        self.signature: str = next(iter(self._interpreter.get_signature_list()), "")
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        if self.signature:
            # The runner of a signature must be gone before invoke(): it holds the interpreter.
            runner = self._interpreter.get_signature_runner(self.signature)
            self._inputs = _ports(runner.get_input_details(), inputs)
            self._outputs = _ports(runner.get_output_details(), outputs)
        else:
            self._inputs = _ports({details["name"]: details for details in inputs}, inputs)
            self._outputs = _ports({details["name"]: details for details in outputs}, outputs)
        if len(self._outputs) == 1:
            self._output_names = ["output"]
        else:
            self._output_names = [port.name for port in self._outputs]

    def __call__(self, inputs: Mapping[str, NDArray[Any]], /) -> dict[str, NDArray[np.float32]]:
        """Run ``n`` examples, one by one: none can touch its neighbours.

        Args:
            inputs: by name, each ``(n, …)``. If none of the names is the model's and there are
                as many, they are taken in order; so a lone input may have any name.

        Returns:
            Outputs by name, each ``(n, …)``; a lone output is called ``output``.

        Raises:
            ValueError: an input is missing or has the wrong shape.
        """
        fed = self._encode(inputs)
        count = len(fed[0])
        if count == 1:  # what latency is measured on: nothing to cut or to join
            stored = self._run(fed)
        else:
            rows = [self._run([values[row : row + 1] for values in fed]) for row in range(count)]
            stored = [np.concatenate(column) for column in zip(*rows)]
        return {
            name: port.decode(values)
            for name, port, values in zip(self._output_names, self._outputs, stored)
        }

    def feeds(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Give each example by the names, and in the types, that the signature has."""
        fed = self._encode(inputs)
        names = [port.name for port in self._inputs]
        for row in range(len(fed[0])):
            yield dict(zip(names, (values[row : row + 1] for values in fed)))

    def tensor(self, number: int) -> NDArray[Any]:
        """Give a copy of what the last run left in a tensor; needs ``keep_tensors``.

        Raises:
            ValueError: the tensor holds nothing.
        """
        values: NDArray[Any] = self._interpreter.get_tensor(number)
        return values

    def _run(self, example: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run one example, given and returned as the tensors hold it."""
        interpreter = self._interpreter
        for port, values in zip(self._inputs, example):
            interpreter.set_tensor(port.index, values)
        interpreter.invoke()
        return [interpreter.get_tensor(port.index) for port in self._outputs]

    def _encode(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Give what each input tensor takes, in the model's order."""
        missing = [port.name for port in self._inputs if port.name not in inputs]
        if len(missing) == len(inputs) == len(self._inputs):
            pairs = zip(self._inputs, inputs.values())
            return [port.encode(values) for port, values in pairs]
        if missing:
            raise ValueError(
                f"the batch has no input {', '.join(missing)}; it has {', '.join(inputs)}"
            )
        return [port.encode(inputs[port.name]) for port in self._inputs]


def _ports(
    named: Mapping[str, Mapping[str, Any]], ordered: list[Mapping[str, Any]]
) -> tuple[_Port, ...]:
    """Describe inputs or outputs in the model's order; signatures list them by the alphabet."""
    order = [details["index"] for details in ordered]
    ports = []
    for name, details in sorted(named.items(), key=lambda item: order.index(item[1]["index"])):
        shape = tuple(int(size) for size in details["shape"])
        if shape[:1] != (1,):
            raise ValueError(f"'{name}' has shape {shape}; axis 0 must be a batch of 1")
        scale, zero_point = details["quantization"]
        ports.append(_Port(name, details["index"], np.dtype(details["dtype"]), scale, zero_point))
    return tuple(ports)


def _interpreter(data: bytes, threads: int, keep_tensors: bool, reference_kernels: bool) -> Any:
    """Load the file into whichever runtime is installed."""
    is_old = False
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ModuleNotFoundError:
        from tflite_runtime.interpreter import Interpreter, OpResolverType

        is_old = True
    kernels = OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO
    interpreter = Interpreter(
        model_content=data,
        num_threads=threads,
        experimental_preserve_all_tensors=keep_tensors,
        experimental_op_resolver_type=kernels,
    )
    if is_old:
        _refuse_what_it_gets_wrong(interpreter, data)
    interpreter.allocate_tensors()
    return interpreter


def _refuse_what_it_gets_wrong(interpreter: Any, data: bytes) -> None:
    """Refuse what tflite-runtime 2.14, the last there is, computes wrongly without a word.

    It knows neither fully-connected weights with a scale per channel nor 4-bit convolutions
    beside float activations, nor 4-bit weights beside 16-bit activations.

    Raises:
        NotImplementedError: an operation takes float activations and integer weights, or 16-bit
            activations and 4-bit weights.
    """
    tensors = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    stored = _tensor_types(data)
    for operation in interpreter._get_ops_details():  # noqa: SLF001  nothing public lists them
        numbers = [int(number) for number in operation["inputs"][:2]]
        dtypes = [tensors.get(number) for number in numbers]
        if dtypes[0] == np.int16 and any(
            stored[number] == _INT4 for number in numbers if 0 <= number < len(stored)
        ):
            raise NotImplementedError(
                "tflite-runtime is known to return garbage for 4-bit weights beside 16-bit "
                f"activations ({operation['op_name']}); install ai-edge-litert here, or quantize "
                "to w8a16 or w4a8"
            )
        if dtypes == [np.float32, np.int8]:
            raise NotImplementedError(
                "tflite-runtime is known to return garbage for dynamic quantization by "
                f"ai-edge-quantizer ({operation['op_name']} with float activations and integer "
                "weights); install ai-edge-litert here, or quantize weight_only or static"
            )


def _require_whole(data: bytes) -> None:
    """Refuse a file whose end is missing: tflite-runtime reads past it and dies.

    Operator codes and buffers are what the writers of TFLite files put last, so a cut anywhere
    takes some of them away. (Damage in the middle is for the carrier's digest to find.)

    Raises:
        ValueError: the file is cut off, or is no TFLite model.
    """
    try:
        whole = data[4:8] == _IDENTIFIER and _end(data) <= len(data)
    except struct.error:
        whole = False
    if not whole:
        raise ValueError(
            f"these {len(data)} bytes are no whole TFLite model; the file was cut off on its way: "
            "copy or prepare it again"
        )


def _end(data: bytes) -> int:
    """Find the end of a model's last operator code or buffer, in bytes."""
    table = _Flatbuffer(data)
    model = table.root()
    operator_codes, buffers = table.tables(model, 1), table.tables(model, 4)
    ends = [table.end_of_layout(code) for code in operator_codes + buffers]
    for buffer in buffers:
        if content := table.field(buffer, 0):
            at = table.follow(content)
            ends.append(at + 4 + table.read("I", at))
        # Contents of files over 2 GB lie behind the flatbuffer, at an offset of their own.
        if (offset := table.field(buffer, 1)) and (size := table.field(buffer, 2)):
            ends.append(table.read("Q", offset) + table.read("Q", size))
    return max(ends, default=model)


def _tensor_types(data: bytes) -> list[int]:
    """Give the type of each tensor of the first subgraph, as the schema numbers types."""
    table = _Flatbuffer(data)
    graphs = table.tables(table.root(), 2)
    types = [table.field(tensor, 1) for tensor in table.tables(graphs[0], 0)] if graphs else []
    return [table.read("b", at) if at else 0 for at in types]


@dataclass(frozen=True)
class _Flatbuffer:
    """Just enough of https://flatbuffers.dev/internals to look into a file that is not trusted.

    Fields are numbered as in TFLite's schema.fbs; positions are in bytes.
    """

    data: bytes

    def read(self, kind: str, at: int) -> int:
        """Read a little-endian number; ``kind`` as in ``struct``."""
        return int(struct.unpack_from(f"<{kind}", self.data, at)[0])

    def follow(self, at: int) -> int:
        """Give what a relative offset points at."""
        return at + self.read("I", at)

    def root(self) -> int:
        """Give the position of the model."""
        return self.follow(0)

    def end_of_layout(self, table: int) -> int:
        """Give the end of a table's own fields."""
        return table + self.read("H", table - self.read("i", table) + 2)

    def field(self, table: int, number: int) -> int:
        """Give a field's position, or 0 where the table lacks it."""
        layout, slot = table - self.read("i", table), 4 + 2 * number
        offset = self.read("H", layout + slot) if slot < self.read("H", layout) else 0
        return table + offset if offset else 0

    def tables(self, table: int, number: int) -> list[int]:
        """Give the positions of a field that is a vector of tables."""
        at = self.field(table, number)
        if not at:
            return []
        vector = self.follow(at)
        return [self.follow(vector + 4 + 4 * item) for item in range(self.read("I", vector))]
