"""Executables that time themselves, through the worker and the protocol to the row."""

import pytest
from self_timed_stub import NANOSECONDS, PEAK_BYTES, TRANSFERS

from qb_cluster.contracts import Bits, Cell, Device, Latency, Measure, Ref, Task
from qb_cluster.evaluation.latency import measure
from qb_cluster.nodes import environment
from qb_cluster.nodes.cores import available_cores
from qb_cluster.worker import Worker, site
from qb_cluster.worker.artifact_cache import ArtifactCache

CORES = available_cores()[:1]
QUICK = Latency(warmup_s=0.001, min_runs=20, min_s=1e-5)


def cell(backend, *, is_baseline=False):
    return Cell(
        cell_id="baseline" if is_baseline else "quantized",
        sweep="s",
        model=Ref("m", "worker_stubs:identity"),
        dataset=Ref("d", "worker_stubs:points"),
        backend=Ref("b", f"self_timed_stub:{backend}"),
        device=Device(),
        scheme=None if is_baseline else Ref("weight_only", "weight_only"),
        bits=None if is_baseline else Bits(4),
        execution=None if is_baseline else "native",
        reason="",
        calibration=None,
        measure=Measure(latency=QUICK),
        timeout_s=60,
        baseline_cell_id="baseline",
        simulator=None,
    )


@pytest.fixture
def stages(tmp_path):
    """Run a cell's stages, its baseline first; gives the last two outcomes."""
    worker = Worker(tmp_path / "artifacts", ArtifactCache(tmp_path / "cache", limit_bytes=0))
    TRANSFERS.clear()

    def run(backend="SelfTimed"):
        base, asked = cell(backend, is_baseline=True), cell(backend)
        baseline = worker.run(Task(base, "quality", 1, CORES))
        quality = worker.run(Task(asked, "quality", 1, CORES, baseline.quality))
        task = Task(asked, "latency", 1, CORES, baseline.quality, quality.quality)
        return quality, worker.run(task)

    return run


def test_what_times_itself_is_believed_and_the_row_says_so(stages):
    _, latency = stages()
    assert latency.status == "ok"
    assert latency.values["latency_median_ns"] == NANOSECONDS["other"]
    assert latency.values["baseline_latency_median_ns"] == NANOSECONDS["float"]
    assert latency.values["speedup"] == pytest.approx(3)
    assert latency.values["notes"] == ["timed by CUDA events, transfers excluded"]
    assert TRANSFERS == [1, 1]  # one example, once for each model


def test_the_first_inference_goes_by_the_wall_clock(stages):
    _, latency = stages()
    assert latency.values["first_inference_ns"] > 0
    assert latency.values["first_inference_ns"] != NANOSECONDS["other"]


def test_two_clocks_are_never_compared(stages):
    _, latency = stages("QuantizedAlone")
    assert latency.status == "ok"
    assert "notes" not in latency.values
    assert not TRANSFERS
    assert latency.values["latency_median_ns"] != NANOSECONDS["other"]


def test_the_most_memory_is_what_the_executable_tells(stages):
    quality, _ = stages()
    assert quality.values["peak_memory_bytes"] == PEAK_BYTES


def test_another_process_on_the_gpu_is_flagged(stages, monkeypatch):
    monkeypatch.setattr(environment, "own_gpu", lambda: {"uuid": "GPU-1"})
    used_by = [[11]]
    monkeypatch.setattr(site, "foreign_processes", lambda gpu, own_pids: used_by[0])
    assert "foreign_gpu_process" not in stages()[1].values["latency_flags"]
    used_by[0] = [11, 12]
    assert "foreign_gpu_process" in stages()[1].values["latency_flags"]


def test_each_arm_gets_its_seconds_by_its_own_clock():
    settings = Latency(warmup_s=0, min_runs=10, min_s=1e-4)
    result = measure(lambda: 1_000, lambda: 4_000, settings, self_timed=True)
    for arm, cost in (("baseline", 1_000), ("quantized", 4_000)):
        samples = result.samples(arm)
        assert set(samples) == {cost}
        assert samples.sum() >= 1e5


def test_the_cap_goes_by_the_wall_clock():
    clock = [0]

    def run():
        clock[0] += 1_000_000_000
        return 5

    settings = Latency(warmup_s=0, min_runs=50, min_s=0, cap_s=20)
    assert measure(run, run, settings, lambda: clock[0], self_timed=True).capped
