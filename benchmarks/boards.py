"""What an agent costs: running and timing an artifact through one, against the same in-process.

The agent is that of boards, in another process of this machine: what is measured is the protocol,
not a network. Limits: a latency through the agent is the latency (within 10 %), and a quality pass
takes at most three times as long for the smallest nets there are: some 0.5 ms a batch.

Run it alone: python benchmarks/boards.py
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from qb_cluster.boards.board import Board
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.catalog.plugins import make
from qb_cluster.contracts import Bits, Latency, Quantization, Ref, Scheme
from qb_cluster.evaluation import inference, latency
from qb_litert.runtime import TFLiteExecutable
from qb_tflite import TFLiteBackend

MOST_LATENCY, MOST_QUALITY = 1.10, 3.0
ROUNDS, PASSES = 5, 5
SETTINGS = Latency(min_runs=400, min_s=1.0)


def main() -> None:
    """Measure, print, and fail where a limit is passed."""
    dataset = load_dataset(Ref("digits", "digits"))
    example = dataset.example()
    backend = TFLiteBackend()

    def model() -> object:
        return make("model", Ref("digits-cnn", "digits-cnn"))

    baseline = backend.convert(model, example)
    weight_only = Quantization(Scheme("weight_only", "weight_only"), Bits(8), "native")
    quantized = backend.quantize(model, baseline, weight_only, None)
    here = [TFLiteExecutable(artifact.data, 1) for artifact in (baseline, quantized)]
    began = time.perf_counter()
    with Board.connect(Path(sys.executable), "qb_litert.runtime", "benchmark", "") as board:
        started_s = time.perf_counter() - began
        there = [board.open(artifact, 1) for artifact in (baseline, quantized)]
        passes: dict[str, list[float]] = {"here": [], "there": []}
        medians: dict[str, list[float]] = {"here": [], "there": []}
        for _ in range(ROUNDS):  # in turns, so that a drift of the machine hits both
            for where, executable in (("here", here[1]), ("there", there[1])):
                for _ in range(PASSES):
                    began = time.perf_counter()
                    inference.run(executable, dataset.inputs, 64)
                    passes[where].append(time.perf_counter() - began)
            own = latency.measure(lambda: here[0](example), lambda: here[1](example), SETTINGS)
            theirs = board.time(baseline, quantized, example, SETTINGS, 1, (0,)).result
            for where, result in (("here", own), ("there", theirs)):
                medians[where].append(float(np.median(result.samples("baseline"))) / 1e3)
    quality = statistics.median(passes["there"]) / statistics.median(passes["here"])
    timed = statistics.median(medians["there"]) / statistics.median(medians["here"])
    n = len(dataset.targets)
    print(f"agent up after {started_s:.2f} s")
    print(
        f"quality pass over {n} digits: {statistics.median(passes['here']) * 1e3:.1f} ms here, "
        f"{statistics.median(passes['there']) * 1e3:.1f} ms through the agent: {quality:.2f} x "
        f"(limit {MOST_QUALITY})"
    )
    print(
        f"latency of the float CNN: {statistics.median(medians['here']):.1f} µs here, "
        f"{statistics.median(medians['there']):.1f} µs by the agent: {timed:.3f} x "
        f"(limit {MOST_LATENCY})"
    )
    if quality > MOST_QUALITY or not 1 / MOST_LATENCY < timed < MOST_LATENCY:
        sys.exit("a limit is passed")


if __name__ == "__main__":
    main()
