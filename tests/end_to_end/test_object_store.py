"""A sweep whose run folder is on an object store, through the command line."""

import pytest
from object_store import read, s3_place, s3_server

__all__ = ["s3_place", "s3_server"]  # fixtures

SPEC = """
sweep: stored
models: [stranger:centroids]
datasets: [stranger:blobs]
schemes: [weight_only, static]
bits: [w8, w4, w3, w4a8]
backends: [stranger:NumpyBackend]
measure: {latency: false}
"""


@pytest.mark.ray
def test_a_sweep_runs_grows_and_reports_on_an_object_store(place, s3_place):
    spec = place.spec(SPEC)
    done = place.qb("run", spec, "--out", s3_place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "secret" not in done.stdout + done.stderr
    results = read(s3_place, "results").set_index("bits")
    assert set(results["status"]) == {"ok"}
    here = place.qb("run", spec, "--out", "here", "--pool", "inline")
    assert here.returncode == 0, here.stderr
    there = results["sqnr_db"].to_dict()
    assert place.results("here").set_index("bits")["sqnr_db"].to_dict() == pytest.approx(
        there, nan_ok=True
    )
    grown = place.spec(SPEC.replace("w3,", "w3, w5,"))
    done = place.qb("run", grown, "--out", s3_place, "--pool", "inline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " s, 1 new)" in done.stderr
    status = place.qb("status", s3_place)
    assert f"{len(results) + 1} of {len(results) + 1} cells finished, 0 left" in status.stdout
    reported = place.qb("report", s3_place)
    assert reported.returncode == 0, reported.stderr
    assert "weight_only" in reported.stdout
    assert len(read(s3_place, "report/comparison.parquet")) > 0
