"""The one GPU that this process sees: what it can do, and models that run and are timed on it."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays
from qb_cluster.errors import OutOfMemoryError, UnsupportedError
from qb_pytorch import layers, modules, support

Run = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

CPU: Final = support.CPU
DEVICE: Final = support.GPU
_GIB: Final = 2**30


def start() -> None:
    """Make float32 on the GPU mean float32.

    TF32 would round the inputs of products to 10 bits of fraction, which is coarser than what
    int8 kernels are held against. torch uses it for convolutions unless it is told not to.

    Raises:
        UnsupportedError: this process sees no GPU.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "is built for CPUs" if built is None else f"is built for CUDA {built}"
        raise UnsupportedError(
            f"this process sees no GPU (torch {torch.__version__} {reason}); see that nvidia-smi "
            "lists one there and that torch is built for CUDA, or ask for a device without GPUs"
        )
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    _take_workspaces()


@functools.cache
def _take_workspaces() -> None:
    """Let the libraries take the memory that they keep, so that it is in no model's peak."""
    one = torch.ones((32, 32), device=DEVICE)
    torch.nn.functional.linear(one @ one, one, one[0])
    torch.cuda.synchronize(DEVICE)


def require(what: str, least: tuple[int, int]) -> None:
    """Make sure that the card is new enough.

    Args:
        what: begins the message.
        least: its compute capability.

    Raises:
        UnsupportedError: it is older, or there is none.
    """
    start()
    found = torch.cuda.get_device_capability(DEVICE)
    if found < least:
        raise UnsupportedError(
            f"{what} needs a GPU of compute capability {least[0]}.{least[1]}, and "
            f"{torch.cuda.get_device_name(DEVICE)} has {found[0]}.{found[1]}; write execution: "
            "simulated, or name another accelerator"
        )


def place(module: torch.nn.Module) -> torch.nn.Module:
    """Move a float model to the GPU.

    Raises:
        UnsupportedError: this process sees no GPU.
        OutOfMemoryError: it does not fit.
    """
    start()
    with memory_errors():
        return module.to(DEVICE)


def count_macs(module: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> layers.Macs:
    """Count what one example multiplies on the GPU, so that it is known to run there.

    Args:
        module: a float model in evaluation mode; left on the CPU.
        example: one example of each input, on the CPU.

    Raises:
        UnsupportedError: it makes tensors on the CPU, or calls what has no kernel there.
        OutOfMemoryError: it does not fit.
    """
    place(module)
    try:
        with memory_errors():
            macs = layers.count_macs(
                module, {name: one.to(DEVICE) for name, one in example.items()}
            )
    except RuntimeError as error:
        story = str(error).strip().partition("\n")[0]
        if "device" not in story and "CUDA" not in story:
            raise  # it would not run on a CPU either
        raise UnsupportedError(
            f"the model does not run on a GPU ({story}); make its forward create tensors on the "
            "device of its inputs, or keep it off devices with GPUs"
        ) from None
    module.cpu()
    return macs


def fewest_int8_rows() -> int:
    """Give how many rows an int8 matrix product needs to be one.

    Some versions of torch refuse 16 rows or fewer on a GPU; torchao then multiplies the same
    integers as floats.
    """
    one = torch.ones((1, 16), dtype=torch.int8, device=DEVICE)
    try:
        torch._int_mm(one, one.expand(16, 16).contiguous())  # noqa: SLF001 no other way in
    except RuntimeError:
        return 17
    return 1


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Say that the GPU's memory does not do, where torch says so.

    Raises:
        OutOfMemoryError: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(_too_little(error)) from None


def _too_little(error: Exception) -> str:
    story = str(error).strip().partition(". ")[0]
    if not torch.cuda.is_available():
        return f"the memory does not do ({story}); write a smaller batch_size"
    free, total = torch.cuda.mem_get_info(DEVICE)
    return (
        f"{torch.cuda.get_device_name(DEVICE)} has {free / _GIB:.1f} of {total / _GIB:.1f} GiB "
        f"free, which does not do ({story}); write a smaller batch_size, end what else uses it, "
        "or name a larger accelerator"
    )


class DeviceExecutable:
    """A model on a device with memory of its own; times itself.

    Args:
        run: computes on tensors of the device.
        device: torch's name of it.
        weight_bytes: what the model's tensors take there.
    """

    def __init__(self, run: Run, device: str, weight_bytes: int) -> None:
        self._run = run
        self._device = torch.device(device)
        self._weight_bytes = weight_bytes
        self._most_bytes = weight_bytes

    def __call__(self, inputs: Arrays, /) -> Mapping[str, NDArray[np.float32]]:
        """Run a batch; see ``contracts.Executable``.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        with torch.no_grad(), memory_errors(), self._watching_memory():
            outputs = self._run(self._placed(inputs))
            return {
                name: out.detach().to(torch.float32).cpu().numpy() for name, out in outputs.items()
            }

    def stopwatch(self, inputs: Arrays) -> Callable[[], int]:
        """Give a function that runs a batch and gives the nanoseconds it took on the device.

        The inputs are moved there once, now, and the outputs stay there, so that no transfer is
        timed. On a GPU two CUDA events tell the time, to about half a microsecond; gaps in
        which it waits for the next kernel are in it.

        Raises:
            OutOfMemoryError: they do not fit.
        """
        with memory_errors():
            placed = self._placed(inputs)

        def timed() -> int:
            with torch.no_grad(), memory_errors():
                return _nanoseconds(lambda: self._run(placed), self._device)

        return timed

    def peak_memory_bytes(self) -> int | None:
        """Give the most that the model's tensors and one batch took; ``None`` on a CPU.

        What other models take at the same time is left out, and so is what the driver, torch and
        the libraries keep for themselves.
        """
        return self._most_bytes if self._device.type == "cuda" else None

    def _placed(self, inputs: Arrays) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in modules.tensors(inputs).items()}

    @contextlib.contextmanager
    def _watching_memory(self) -> Iterator[None]:
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        yield
        more = torch.cuda.max_memory_allocated(self._device) - before
        self._most_bytes = max(self._most_bytes, self._weight_bytes + more)


def _nanoseconds(run: Callable[[], Any], device: torch.device) -> int:
    """Time one run from an idle device to an idle device."""
    if device.type != "cuda":
        began = time.perf_counter_ns()
        run()
        return time.perf_counter_ns() - began
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start_event.record()
    run()
    end_event.record()
    end_event.synchronize()
    milliseconds: float = start_event.elapsed_time(end_event)
    return max(1, round(milliseconds * 1e6))
