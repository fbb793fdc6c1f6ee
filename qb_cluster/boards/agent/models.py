"""Artifacts that are open on the board: run, and timed."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qb_cluster.boards.agent.load import Load
from qb_cluster.boards.agent.refusal import Refusal
from qb_cluster.evaluation.timing import take_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]
    Executable = Callable[[Arrays], Mapping[str, NDArray[np.float32]]]


class _Model(NamedTuple):
    run: Executable
    cores: tuple[int, ...]
    is_pinned: bool


class Models:
    """Open artifacts by a number of ours.

    Args:
        runtime: the backend's module for boards: ``load(data, threads)`` makes an executable.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._open: dict[int, _Model] = {}
        self._last = 0
        self._all_cores = _affinity()

    def open(self, data: bytes, threads: int, cores: Sequence[int]) -> int:
        """Make an artifact ready to run; the threads of its kernels stay on ``cores``.

        Raises:
            Refusal: ``unsupported`` where the runtime cannot run this file, ``invalid`` where it
                is none.
        """
        is_pinned = self._pin(tuple(cores))
        try:
            run = self._runtime.load(data, threads)
        except NotImplementedError as error:
            raise Refusal("unsupported", str(error)) from error
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise Refusal("unsupported", f"the runtime there does not take it: {said}") from error
        except ValueError as error:
            raise Refusal("invalid", str(error)) from error
        self._last += 1
        self._open[self._last] = _Model(run, tuple(cores), is_pinned)
        return self._last

    def run(self, handle: int, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run a batch.

        Raises:
            Refusal: ``invalid`` where the inputs do not fit.
        """
        model = self._open[handle]
        self._pin(model.cores)
        try:
            outputs = model.run(inputs)
        except ValueError as error:
            raise Refusal("invalid", str(error)) from error
        return {name: np.asarray(values, "<f4") for name, values in outputs.items()}

    def time(
        self, baseline: int, quantized: int, example: Arrays, settings: dict[str, Any]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Time two artifacts against each other.

        Args:
            baseline: handle of the float one.
            quantized: handle of the other, not run yet.
            example: one example.
            settings: fields of ``contracts.Latency``.

        Returns:
            The answer's header, and the samples of each block as little-endian int64.
        """
        first, second = self._open[baseline], self._open[quantized]
        is_pinned = self._pin(second.cores) and first.is_pinned and second.is_pinned
        niceness = _lower_niceness()
        began = time.perf_counter_ns()
        second.run(example)
        first_inference_ns = time.perf_counter_ns() - began
        before = Load.now()
        blocks, capped = take_samples(
            lambda: first.run(example), lambda: second.run(example), **settings
        )
        answer = {
            "blocks": [[samples.block, samples.position, samples.arm] for samples in blocks],
            "capped": capped,
            "first_inference_ns": first_inference_ns,
            "is_pinned": is_pinned,
            "niceness": niceness,
            "foreign_cores": Load.now().foreign_cores(before),
        }
        return answer, [samples.latency_ns.astype("<i8").tobytes() for samples in blocks]

    def close(self, handle: int) -> None:
        """Free an artifact's memory."""
        self._open.pop(handle, None)

    def _pin(self, cores: tuple[int, ...]) -> bool:
        """Pin this thread; those that a runtime makes now inherit it. No cores: all of them."""
        try:
            os.sched_setaffinity(0, cores or self._all_cores)
        except (AttributeError, OSError):
            return False
        return bool(cores)


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:
        return set()


def _lower_niceness() -> int:
    """Raise this thread to niceness 0 where that is allowed; give the niceness it has."""
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    return os.getpriority(os.PRIO_PROCESS, 0)
