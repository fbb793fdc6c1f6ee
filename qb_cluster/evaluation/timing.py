"""The timing loop of the latency protocol: two arms, interleaved.

Both arms are warmed up in turns, then timed in blocks of ABBA or BAAB order (seeded), so that a
drift of the machine hits both alike (duet benchmarking, arXiv 2001.05811).

Python 3.8 and NumPy are enough, and this file imports nothing else of ours: boards get a copy.
"""

from __future__ import annotations

import gc
import math
import time
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from numpy.typing import NDArray

    Arm = Literal["baseline", "quantized"]
    Run = Callable[[], object]
    Timed = Callable[[], int]
    Clock = Callable[[], int]

FEWEST_BLOCKS = 5
MOST_BLOCKS = 50


class Samples(NamedTuple):
    """Raw timings of one arm in one block; fields as in ``contracts.SampleBlock``."""

    block: int
    position: int
    arm: Arm
    latency_ns: NDArray[np.int64]


def take_samples(
    baseline: Run,
    quantized: Run,
    *,
    warmup_s: float,
    min_runs: int,
    min_s: float,
    cap_s: float,
    seed: int,
    clock_ns: Clock = time.perf_counter_ns,
    self_timed: bool = False,
) -> tuple[list[Samples], bool]:
    """Time both arms.

    Args:
        baseline: runs the float model once.
        quantized: runs the quantized model once.
        warmup_s: and the next four: see ``contracts.Latency``.
        min_runs: timed runs of each arm.
        min_s: timed seconds of each arm.
        cap_s: seconds for all of it.
        seed: decides which arm starts each block.
        clock_ns: a monotonic clock in nanoseconds.
        self_timed: whether each run returns the nanoseconds it took, by the clock of whatever
            computes. ``min_s`` counts these; ``warmup_s`` and ``cap_s`` go by ``clock_ns``.

    Returns:
        Every sample in order, and whether ``cap_s`` ended it before its time.
    """
    began = clock_ns()
    runs_of: dict[Arm, Run] = {"baseline": baseline, "quantized": quantized}
    arms: dict[Arm, Timed] = {
        arm: cast("Timed", run) if self_timed else _by_clock(run, clock_ns)
        for arm, run in runs_of.items()
    }
    cost = _warm_up(arms, warmup_s, clock_ns)
    n_blocks = min(MOST_BLOCKS, max(FEWEST_BLOCKS, math.ceil(min_runs / 2)))
    runs = {
        arm: max(
            math.ceil(min_runs / (2 * n_blocks)),
            math.ceil(min_s * 1e9 / (2 * n_blocks) / cost[arm]),
        )
        for arm in arms
    }
    rng = np.random.default_rng(seed)
    blocks: list[Samples] = []
    capped = False
    collecting = gc.isenabled()
    gc.disable()
    try:
        for block in range(n_blocks):
            first: Arm = "baseline" if rng.integers(2) else "quantized"
            second: Arm = "quantized" if first == "baseline" else "baseline"
            for position, arm in enumerate((first, second, second, first)):
                samples = _time(arms[arm], runs[arm])
                blocks.append(Samples(block, position, arm, samples))
            if clock_ns() - began > cap_s * 1e9 and block + 1 < n_blocks:
                capped = True
                break
    finally:
        if collecting:
            gc.enable()
    return blocks, capped


def _by_clock(run: Run, clock_ns: Clock) -> Timed:
    """Time a run that does not time itself."""

    def timed() -> int:
        before = clock_ns()
        run()
        return clock_ns() - before

    return timed


def _warm_up(arms: dict[Arm, Timed], seconds: float, clock_ns: Clock) -> dict[Arm, float]:
    """Run the arms in turns, once at least; give the mean nanoseconds of each one's later half."""
    times: dict[Arm, list[int]] = {arm: [] for arm in arms}
    began = clock_ns()
    while not times["quantized"] or clock_ns() - began < seconds * 1e9:
        for arm, timed in arms.items():
            times[arm].append(timed())
    later = {arm: spent[len(spent) // 2 :] for arm, spent in times.items()}
    return {arm: max(1.0, sum(spent) / len(spent)) for arm, spent in later.items()}


def _time(timed: Timed, runs: int) -> NDArray[np.int64]:
    times = np.empty(runs, dtype=np.int64)
    for index in range(runs):
        times[index] = timed()
    return times
