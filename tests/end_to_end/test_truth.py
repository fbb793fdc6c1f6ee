"""Nominal but not real: recipes that do nothing, and kernels that compute something else."""

import re
from functools import partial

import pytest

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import load_dataset
from qb_cluster.contracts import Ref

pytestmark = pytest.mark.frameworks

SPEC = """
sweep: traps
models: [digits-cnn]
datasets: [digits]
schemes:
  - weight_only
  - dynamic
  - {name: dynamic, label: per-tensor, options: {granularity: per_tensor}}
bits: [w2, w3, w16, w4, w2a8, w8a8]
backends: [{name: tflite, options: {allow_known_broken: true}}]
execution: native
measure: {latency: false}
"""


def test_known_traps_of_litert_are_never_reported_as_results(place):
    done = place.qb("run", place.spec(SPEC), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    results = place.results("out").set_index(["scheme", "bits"])
    status = results["status"].to_dict()
    # ai-edge-quantizer accepts these recipes and leaves the model float.
    for bits in ("w2", "w3", "w16"):
        assert status["weight_only", bits] == "not_applied"
        assert results.loc[("weight_only", bits), "bits_per_weight"] == 32
    # LiteRT runs these without an error and returns garbage.
    for key in (("dynamic", "w2a8"), ("per-tensor", "w8a8")):
        assert status[key] == "kernel_mismatch", results.loc[key, "error"]
        row = results.loc[key]
        # What is garbage depends on what lay in memory: it may not even be finite, and once it was
        # 6 dB. It is never near what the scheme gives.
        limit = max(1, row["reference_sqnr_db"] - 20)
        assert row["sqnr_db"] < limit or "NaN" in row["error"]
        assert row["reference_sqnr_db"] > 1
        assert row[["latency_median_ns", "speedup"]].isna().all()
        assert re.search("reference arithmetic|simulation is finite", row["error"])
        assert row["simulator"] == "pytorch"
    # And these are what they say.
    for key in (("float", "f32"), ("weight_only", "w4"), ("dynamic", "w8a8")):
        assert status[key] == "ok"


SAME = """
sweep: agree
models: [digits-mlp]
datasets: [digits]
schemes: [static]
bits: [w8a8]
backends: [pytorch, tflite, onnxruntime]
measure: {latency: false}
"""


@pytest.mark.nightly
def test_one_scheme_on_three_runtimes_agrees_with_its_simulation_and_is_tabled(place):
    done = place.qb("run", place.spec(SAME), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    results = place.results("out")
    quantized = results[results["scheme"] == "static"]
    assert (quantized["reference_agreement"] > 0.98).all()
    assert ((quantized["sqnr_db"] - quantized["reference_sqnr_db"]).abs() < 10).all()
    reported = place.qb("report", "out")
    assert reported.returncode == 0, reported.stderr
    assert (place.folder / "out" / "report" / "agreement.parquet").exists()


LAYERS = """
sweep: layers
models: [digits-mlp]
datasets: [digits]
schemes: [weight_only]
bits: [w8, w4, w2]
backends: [pytorch]
execution: simulated
measure: {latency: false, layers: true}
"""


def test_a_proposal_from_measured_layers_is_a_scheme_that_a_sweep_runs(place):
    done = place.qb("run", place.spec(LAYERS), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    proposed = place.qb("propose", "out", "--model", "digits-mlp", "--bits", "5")
    assert proposed.returncode == 0, proposed.stderr
    mixed = LAYERS.replace("sweep: layers", "sweep: mixed").replace("layers: true", "layers: false")
    mixed = mixed.replace("schemes: [weight_only]", "schemes:\n" + proposed.stdout)
    spec = place.spec(mixed, "mixed.yaml")
    done = place.qb("run", spec, "--out", "mixed", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    assert set(place.results("mixed")["status"]) == {"ok"}


@pytest.mark.nightly
@pytest.mark.ray
def test_every_native_entry_of_the_support_matrix_really_is(place):
    done = place.qb("backends", "--check")
    assert done.returncode == 0, done.stdout[-2_000:]
    assert "every native entry holds" in done.stdout
    assert "BROKEN CLAIM" not in done.stdout


FILES = """
sweep: files
models: [nets/mlp.onnx, nets/mlp.tflite, nets/mlp.keras]
datasets: [digits]
schemes: [weight_only, static]
bits: [w8, w8a8]
backends: [onnxruntime, tflite, tensorflow]
measure: {latency: false}
"""


def test_model_files_are_swept_by_the_backends_that_take_them(place):
    example = {"input": load_dataset(Ref("digits", "digits")).inputs["input"][:1]}
    nets = place.folder / "nets"
    nets.mkdir()
    for backend, model, ending in (
        ("onnxruntime", "digits-mlp", "onnx"),
        ("tflite", "digits-mlp", "tflite"),
        ("tensorflow", "digits-keras-mlp", "keras"),
    ):
        made = plugins.make("backend", Ref(backend, backend))
        artifact = made.convert(partial(plugins.make, "model", Ref(model, model)), example)
        (nets / f"mlp.{ending}").write_bytes(artifact.data)
    done = place.qb("run", place.spec(FILES), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out")
    ran = results[results["status"] == "ok"]
    assert set(zip(ran["model"], ran["backend"], strict=True)) == {
        ("nets/mlp.onnx", "onnxruntime"),
        ("nets/mlp.tflite", "tflite"),
        ("nets/mlp.keras", "tensorflow"),
    }
    assert (ran["value"] > 0.95).all()
    others = results[results["status"] != "ok"]
    assert set(others["status"]) == {"unsupported"}
