"""A stranger adds one of everything without touching the core."""

import pytest
from conftest import LATENCY

BY_IMPORT_PATH = f"""
sweep: by-path
models: [stranger:centroids, {{name: "stranger:centroids", label: big, options: {{scale: 100}}}}]
datasets: [{{name: "stranger:blobs", options: {{count: 300}}}}]
schemes: [weight_only, stranger:powers_of_two, static]
bits: [w8, w4, w2, w4a8]
backends: [stranger:NumpyBackend]
measure: {{metric: {{name: "stranger:top_k", options: {{k: 2}}}}, latency: {LATENCY}}}
"""


def test_everything_plugs_in_by_import_path(place):
    done = place.qb("run", place.spec(BY_IMPORT_PATH), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    results = place.results("out")
    assert len(results) == 2 + 2 * (3 + 3 + 1)
    by_scheme = results.groupby("scheme")["status"].value_counts().to_dict()
    assert by_scheme["stranger:powers_of_two", "ok"] == 6
    # The recipe that silently does nothing is caught, for both models.
    assert by_scheme["weight_only", "not_applied"] == 2
    caught = results[results["status"] == "not_applied"]
    assert set(caught["bits"]) == {"w2"}
    assert caught["value"].isna().all()
    assert (caught["bits_per_weight"] == 32).all()
    ok = results[(results["status"] == "ok") & (results["scheme"] != "float")]
    assert ok["metric"].str.contains("top_k").all()
    assert (ok["delta_low"] <= ok["delta"]).all()
    assert ok["latency_median_ns"].notna().equals(ok["execution"] == "native")


def test_everything_plugs_in_by_entry_point(place):
    info = place.folder / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    groups = {
        "models": "blob-model = stranger:centroids",
        "datasets": "blobs = stranger:blobs",
        "schemes": "powers = stranger:powers_of_two",
        "metrics": "top2 = stranger:top_k",
        "backends": "plain-numpy = stranger:NumpyBackend",
    }
    (info / "entry_points.txt").write_text(
        "".join(f"[qb_cluster.{group}]\n{line}\n" for group, line in groups.items())
    )
    spec = place.spec(
        "sweep: by-name\nmodels: [blob-model]\ndatasets: [blobs]\nschemes: [powers]\n"
        "bits: [w4, w3]\nbackends: [plain-numpy]\nmeasure: {metric: top2, latency: false}\n"
    )
    done = place.qb(
        "run", spec, "--out", "out", "--pool", "inline", env={"PYTHONPATH": str(place.folder)}
    )
    assert done.returncode == 0, done.stderr
    results = place.results("out")
    assert set(results["status"]) == {"ok"}
    assert set(results["bits"]) == {"f32", "w4", "w3"}


@pytest.mark.ray
def test_workers_find_plugins_too_and_give_the_same_numbers_as_inline(place):
    spec = place.spec(BY_IMPORT_PATH)
    for pool in ("inline", "ray"):
        done = place.qb("run", spec, "--out", pool, "--pool", pool)
        assert done.returncode == 0, done.stderr
    columns = [
        "cell_id", "status", "value", "baseline_value", "delta", "delta_low", "delta_high",
        "p_value", "flips_worse", "flips_better", "top1_agreement", "sqnr_db", "cosine",
        "max_abs_error", "artifact_bytes", "bits_per_weight", "examples",
    ]  # fmt: skip
    inline, ray = (
        place.results(out)[columns].sort_values("cell_id").reset_index(drop=True)
        for out in ("inline", "ray")
    )
    assert inline.equals(ray), inline.compare(ray)
