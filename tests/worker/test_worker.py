from dataclasses import replace

import numpy as np
import pytest
import worker_stubs

from qb_cluster.contracts import (
    Bits,
    Calibration,
    Latency,
    Measure,
    Ref,
    Task,
)
from qb_cluster.nodes import environment
from qb_cluster.nodes.cores import available_cores
from qb_cluster.worker import Worker
from qb_cluster.worker.artifact_cache import ArtifactCache

CORES = available_cores()[:1]
STILL_POINTS = worker_stubs.still_points
QUICK = Latency(warmup_s=0.001, min_runs=10, min_s=0.001)


def cell(
    what="right",
    execution="native",
    backend="Stub",
    simulator=True,
    *,
    is_baseline=False,
    **measure,
):
    return replace(
        worker_stubs.FLOAT,
        cell_id="baseline" if is_baseline else "quantized",
        backend=Ref("b", f"worker_stubs:{backend}", f'{{"what":"{what}"}}'),
        scheme=None if is_baseline else Ref("weight_only", "weight_only"),
        bits=None if is_baseline else Bits(4),
        execution=execution,
        measure=Measure(latency=QUICK, **measure),
        simulator=Ref("sim", "worker_stubs:Stub") if simulator else None,
    )


def at_chance(count, shift):
    found = STILL_POINTS(count, shift)
    return found | {"targets": (found["targets"] + 1) % 3}


def regression(count, shift):
    found = STILL_POINTS(count, shift)
    return found | {"targets": found["inputs"].sum(axis=1)}


@pytest.fixture
def run(tmp_path):
    """Run the stages of a cell, its baseline first; gives the last outcome."""
    worker = Worker(tmp_path / "artifacts", ArtifactCache(tmp_path / "cache", limit_bytes=0))
    worker_stubs.CALLS.clear()

    def run(asked, stage="quality"):
        options = {"backend": asked.backend.target.partition(":")[2]}
        base = cell(is_baseline=True, **options)
        baseline = worker.run(Task(base, "quality", 1, CORES))
        if baseline.quality is None:
            return baseline
        quality = worker.run(Task(asked, "quality", 1, CORES, baseline.quality))
        if stage == "quality":
            return quality
        return worker.run(Task(asked, stage, 1, CORES, baseline.quality, quality.quality))

    return run


def test_a_kernel_that_computes_its_scheme_gets_a_result_and_both_sqnrs(run):
    outcome = run(cell())
    assert outcome.status == "ok"
    values = outcome.values
    assert values["value"] is not None
    # Twice the noise: 6 dB below the simulation.
    assert values["reference_sqnr_db"] - values["sqnr_db"] == pytest.approx(6, abs=0.1)
    assert values["simulator"] == "sim"
    assert (values["integer_mac_share"], values["fallback_ops"]) == (0.5, ["Gelu"])
    assert values["integer_layer_mac_share"] == 0.75


@pytest.mark.parametrize("what", ["garbage", "nan"])
def test_a_kernel_that_computes_something_else_is_a_mismatch_whatever_its_accuracy(run, what):
    outcome = run(cell(what))
    assert outcome.status == "kernel_mismatch"
    assert ("value" in outcome.values) == (what == "garbage")  # kept, and no result
    if what == "garbage":
        assert outcome.values["sqnr_db"] < outcome.values["reference_sqnr_db"] - 10
        assert "simulation on sim" in outcome.error


def test_without_a_simulator_the_row_says_that_kernels_were_held_against_nothing(run):
    outcome = run(cell("garbage", simulator=False))
    assert outcome.status == "ok"
    assert "held against nothing" in str(outcome.values["notes"])


def test_who_turns_out_not_to_take_the_model_leaves_its_simulation_to_the_cells_own_backend(run):
    other = Ref("other", "worker_stubs:TorchOnly")
    own = run(replace(cell(backend="OfItsFormat"), simulator=other))
    assert (own.values["simulator"], own.values.get("notes")) == ("b", None)
    assert own.values["reference_sqnr_db"] > own.values["sqnr_db"]

    none = run(replace(cell(), simulator=other))  # its own says of no format that it simulates it
    assert "takes models of kind torch" in str(none.values["notes"])
    assert "reference_sqnr_db" not in none.values


@pytest.mark.parametrize("is_at_chance", [False, True])
def test_a_float_model_at_chance_says_so_in_its_own_row_alone(tmp_path, monkeypatch, is_at_chance):
    if is_at_chance:
        monkeypatch.setattr(worker_stubs, "still_points", at_chance)
    worker = Worker(tmp_path / "artifacts", ArtifactCache(tmp_path / "cache", limit_bytes=0))
    baseline = worker.run(Task(cell(is_baseline=True), "quality", 1, CORES))
    quantized = worker.run(Task(cell(), "quality", 1, CORES, baseline.quality))
    said = "most frequent class (exact binomial test" in str(baseline.values["notes"])
    assert said == is_at_chance
    assert "most frequent" not in str(quantized.values["notes"])


def test_what_is_no_classification_fails_in_one_line_with_what_to_do(run, monkeypatch):
    monkeypatch.setattr(worker_stubs, "still_points", regression)
    outcome = run(cell(is_baseline=True))
    assert outcome.status == "failed"
    assert outcome.error.startswith("accuracy is for classes, and the targets are float32")
    assert outcome.error.endswith("measure: {metric: my_metrics:score} (docs/plugins.md)")


def test_a_twin_is_simulated_once_for_all_backends(run):
    run(cell())
    run(cell("garbage"))
    assert worker_stubs.CALLS.count("quantize simulated") == 1


def test_a_simulated_cell_is_the_twin_of_native_ones(run):
    asked = cell(execution="simulated")
    run(asked)
    native = cell()
    twin = Ref(asked.backend.label, asked.backend.target, asked.backend.options_json)
    object.__setattr__(native, "simulator", twin)
    run(native)
    assert worker_stubs.CALLS.count("quantize simulated") == 1


@pytest.mark.parametrize(
    ("what", "message"), [("float", "all float"), ("identical", "bit-identical")]
)
def test_an_artifact_that_stayed_float_is_no_result(run, what, message):
    outcome = run(cell(what))
    assert outcome.status == "not_applied"
    assert message in outcome.error
    assert "value" not in outcome.values
    assert outcome.values["bits_per_weight"] == 8


def test_a_cell_with_the_float_models_outputs_leaves_their_digest(run, tmp_path):
    outcome = run(cell("identical"))
    files = (tmp_path / "artifacts").glob("*.npy")
    [floats] = [file.stem for file in files if not file.stem.startswith("twin-")]
    assert outcome.values["outputs_digest"] == floats


def test_a_kind_of_model_that_the_backend_does_not_take_is_unsupported(run):
    outcome = run(cell(backend="TorchOnly"))
    assert outcome.status == "unsupported"
    assert "takes models of kind torch" in outcome.error


def test_layers_are_measured_on_calibration_examples_where_asked(run):
    assert run(cell(execution="simulated")).layers == ()
    outcome = run(cell(execution="simulated", layers=True))
    assert [layer.layer for layer in outcome.layers] == ["fc"]


def test_outputs_are_kept_for_the_agreement_of_backends(run, tmp_path):
    outcome = run(cell())
    kept = np.load(tmp_path / "artifacts" / f"{outcome.values['outputs_digest']}.npy")
    assert kept.shape == (60, 4)


def test_latency_leaves_medians_a_speedup_and_every_sample(run):
    outcome = run(cell(), "latency")
    assert outcome.status == "ok", outcome.error
    assert outcome.values["latency_median_ns"] > 0
    assert outcome.values["speedup_low"] <= outcome.values["speedup"]
    samples = [len(block.latency_ns) for block in outcome.samples if block.arm == "quantized"]
    assert sum(samples) == outcome.values["latency_runs"]


def test_a_damaged_artifact_is_named_and_not_run(run, tmp_path):
    kept = tmp_path / "artifacts" / f"{run(cell()).quality.artifact.digest}.bin"
    kept.write_bytes(b"x" * kept.stat().st_size)
    outcome = run(cell(), "latency")
    assert outcome.status == "failed"
    assert "no longer has its digest" in outcome.error


def test_an_artifact_cut_short_is_written_anew(run, tmp_path):
    kept = tmp_path / "artifacts" / f"{run(cell()).quality.artifact.digest}.bin"
    kept.write_bytes(b"x")
    assert run(cell(), "latency").status == "ok"


def test_calibration_reaches_the_backend(run):
    asked = cell()
    object.__setattr__(asked, "scheme", Ref("static", "static"))
    object.__setattr__(asked, "bits", Bits(4, 8))
    object.__setattr__(asked, "calibration", Calibration(samples=5))
    assert run(asked).status == "ok"


GPU = {"name": "NVIDIA L4", "memory_bytes": 24 * 10**9, "driver": "570.86", "uuid": "GPU-0"}


@pytest.mark.parametrize("stage", ["quality", "latency"])
def test_a_row_of_a_device_with_a_gpu_names_it_and_one_of_the_cpu_does_not(run, monkeypatch, stage):
    monkeypatch.setattr(environment, "own_gpu", lambda: GPU)
    monkeypatch.setattr(worker_stubs.Stub, "on_gpu", lambda stub: stub, raising=False)
    without = run(cell(), stage)
    asked = cell()
    object.__setattr__(asked, "device", replace(asked.device, gpus=1))
    outcome = run(asked, stage)
    assert (without.status, outcome.status) == ("ok", "ok")
    assert (without.values["accelerator"], outcome.values["accelerator"]) == (None, "NVIDIA L4")
    assert outcome.environment["gpu"] == GPU
    assert "gpu" not in without.environment


def test_a_cell_whose_backend_says_what_cannot_be_of_its_artifact_fails_by_name(run):
    outcome = run(cell("more than all"))
    assert outcome.status == "failed"
    assert "11 of 10 parameters are quantized" in outcome.error
    assert "value" not in outcome.values


@pytest.mark.parametrize(
    ("what", "whose"),
    [("zeros when timed", "quantized"), ("float zeros when timed", "float")],
)
def test_what_is_timed_gives_what_was_judged_or_the_cell_is_a_mismatch(run, what, whose):
    outcome = run(cell(what), "latency")
    assert outcome.status == "kernel_mismatch"
    assert f"for the first example alone, as it is timed, the {whose} model gives" in outcome.error
    assert "speedup" not in outcome.values


def test_outputs_too_large_to_keep_leave_those_of_the_first_example(run, tmp_path, monkeypatch):
    monkeypatch.setattr("qb_cluster.worker.quality_stage.MOST_KEPT_BYTES", 0)
    assert run(cell(), "latency").status == "ok"
    assert run(cell("zeros when timed"), "latency").status == "kernel_mismatch"
