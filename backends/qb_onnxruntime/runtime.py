"""Running an ONNX file. Needs onnxruntime and NumPy, nothing else."""

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays
from qb_cluster.errors import CellError, OutOfMemoryError, UnsupportedError
from qb_onnxruntime.reason import reason

ONE_BY_ONE = "qb_one_by_one"
"""Metadata key of a file whose activation ranges span the batch, so that examples must not meet."""

ERRORS_ONLY = 3
_NEWER = (
    "Unsupported model IR version",
    "is under development",
    "No Op registered for",
    "is not a registered function/op",
)
"""What onnxruntime says of a file that is newer than itself."""

_DAMAGED = ("protobuf parsing failed", "No graph was found")
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory")


class Session:
    """An ONNX file open on the CPU.

    Args:
        data: content of the file.
        threads: threads that share the work of one operator.
        options: of the session; ``None`` for those of every other one.

    Raises:
        UnsupportedError: this onnxruntime has no kernel for it, or refuses its graph.
        CellError: the file is damaged, or newer than this onnxruntime.
    """

    __slots__ = ("_names", "_one_by_one", "_run")

    def __init__(self, data: bytes, threads: int, options: Any = None) -> None:
        session = open_session(data, options or session_options(threads))
        self._run = session.run
        self._names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        self._one_by_one = ONE_BY_ONE in session.get_modelmeta().custom_metadata_map

    def __call__(self, inputs: Arrays, /) -> Mapping[str, NDArray[np.float32]]:
        """Run a batch: ``n`` examples along axis 0 of every input and every output."""
        if self._one_by_one and (count := len(next(iter(inputs.values())))) > 1:
            rows = [
                self._run(None, {name: array[i : i + 1] for name, array in inputs.items()})
                for i in range(count)
            ]
            results = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        else:
            results = self._run(None, inputs)
        return dict(zip(self._names, map(_float32, results), strict=True))


def open_session(data: bytes, options: Any) -> Any:
    """Open a session on the CPU.

    Raises:
        UnsupportedError: there is no kernel for it on this CPU, or its graph is invalid.
        OutOfMemoryError: it does not fit.
        CellError: it is damaged, or newer than this onnxruntime.
    """
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        text, said, here = str(error), reason(error), f"onnxruntime {ort.__version__}"
        if type(error).__name__ == "NotImplemented":  # its class is in no public module
            raise UnsupportedError(
                f"{here} has no kernel for this on this CPU ({said}); on x86 without VNNI, where "
                "its fast kernels saturate, it has none for dynamic schemes with "
                "symmetric_activations"
            ) from error
        if any(words in text for words in _NEWER):
            raise CellError(
                f"{here} is too old for this file ({said}); install the onnxruntime here that "
                "wrote it"
            ) from error
        if any(words in text for words in _DAMAGED):
            raise CellError(
                f"{here} cannot read this file of {len(data)} bytes ({said}); it is damaged: "
                "delete it and run again"
            ) from error
        if any(words in text for words in _NO_MEMORY):
            raise OutOfMemoryError(
                f"{here} cannot open this file of {len(data)} bytes for want of memory ({said}); "
                "run it where more is free"
            ) from error
        raise UnsupportedError(
            f"{here} refuses this graph ({said}); use another scheme, or leave onnxruntime out of "
            "the backends of this model"
        ) from error


def session_options(threads: int) -> Any:
    """Give options for a quiet session that keeps to its threads and leaves others in peace."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    # A 16-bit MatMul with stored weights would round its activations to int8 (level 4).
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if threads > 1:
        # Idle threads spin after a run by default. With a float and a quantized session open side
        # by side (as when they are timed against each other) the one's spinning slowed the other
        # by 1.1–4.5 times on two cores, and not both alike. So they spin within a run only.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if int8_products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@cache
def int8_products_saturate() -> bool:
    """Tell whether this is an x86 CPU without VNNI.

    Its fast uint8 × int8 kernels add pairs of products in 16 bits, which saturates: the same file
    then gives other numbers than elsewhere (onnxruntime issue 6004). There we take the exact
    kernels; not everywhere, as onnxruntime would use them on VNNI machines too (20 % slower).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux: the flags are unknown, and exact is right everywhere
        return True
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return array if array.dtype == np.float32 else array.astype(np.float32)
