"""NVIDIA GPUs of this machine, as their driver tells of them through NVML.

NVML is reached by the module ``pynvml`` of the distribution ``nvidia-ml-py``, which is optional;
without it, or without a driver, there are no accelerators, quietly.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_DRIVER: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU.

    Attributes:
        index: the driver's number of it, in the order of the PCI bus.
        name: its maker's, such as ``NVIDIA H100 80GB HBM3``.
        memory_bytes: all that it has.
        driver: the version of its driver.
        compute_capability: such as ``9.0``.
        uuid: its own, which stays when others come and go.
    """

    index: int
    name: str
    memory_bytes: int
    driver: str
    compute_capability: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Clocks:
    """What a GPU's streaming multiprocessors and memory run at now, in MHz."""

    sm_mhz: int
    memory_mhz: int


def accelerators() -> list[Accelerator]:
    """Give the GPUs of this machine; empty without NVML, without a driver and without GPUs.

    A GPU that the driver has lost, and that answers nothing any more, is left out.
    """
    with _nvml() as nvml:
        if nvml is None:
            return []
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):
                found.append(_accelerator(nvml, index, driver))
        return found


def visible(gpus: Sequence[Accelerator], setting: str | None) -> list[Accelerator]:
    """Give the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order.

    Args:
        gpus: of this machine.
        setting: its value, or ``None`` where it is not set. As CUDA reads it: numbers or
            beginnings of UUIDs; the first that names no GPU ends the list.
    """
    if setting is None:
        return list(gpus)
    chosen: list[Accelerator] = []
    for name in (part.strip() for part in setting.split(",")):
        fitting = [
            gpu
            for gpu in gpus
            if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
        ]
        if len(fitting) != 1:
            break
        chosen += fitting
    return chosen


def foreign_processes(gpu: int | str, own_pids: Sequence[int]) -> list[int]:
    """Give the ids of processes that use a GPU besides one's own, in order.

    In a container whose process ids are its own, the driver's ids are the host's, and one's own
    processes are seen as foreign.

    Args:
        gpu: its index or its UUID.
        own_pids: the processes that may use it.

    Returns:
        Empty also where NVML is missing, or knows of no such GPU.
    """
    with _nvml() as nvml:
        if nvml is None:
            return []
        seen: set[int] = set()
        for running in (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,  # not supported by every card
        ):
            with contextlib.suppress(nvml.NVMLError):
                seen.update(process.pid for process in running(_handle(nvml, gpu)))
        return sorted(seen - set(own_pids))


def clocks(gpu: int | str) -> Clocks | None:
    """Give what a GPU's clocks run at, by its index or UUID; ``None`` where that is unknown."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            handle = _handle(nvml, gpu)
            return Clocks(
                nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            )
        except nvml.NVMLError:
            return None


def unseen_driver(driver: Path = _DRIVER) -> str | None:
    """Say what to do where there is an NVIDIA driver but no NVML to ask it; ``None`` else."""
    if not driver.exists():
        return None
    with _nvml() as nvml:
        if nvml is not None:
            return None
    return (
        "this machine has an NVIDIA driver, but its GPUs cannot be asked what they are and are "
        "left out; install nvidia-ml-py where qb is installed"
    )


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """Open NVML and close it again; yields its module, or ``None`` where there is none."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or none that this process may use
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _handle(nvml: Any, gpu: int | str) -> Any:
    by: Callable[[Any], Any] = (
        nvml.nvmlDeviceGetHandleByIndex if isinstance(gpu, int) else nvml.nvmlDeviceGetHandleByUUID
    )
    return by(gpu)


def _accelerator(nvml: Any, index: int, driver: str) -> Accelerator:
    handle = _handle(nvml, index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Accelerator(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        driver=driver,
        compute_capability=f"{major}.{minor}",
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
    )


def _text(value: str | bytes) -> str:
    """Older versions of nvidia-ml-py give bytes."""
    return value.decode() if isinstance(value, bytes) else value
