"""A user's mistake costs the cell it is in, and no other."""

import pytest
from conftest import LATENCY

SPEC = f"""
sweep: bad-models
models: [stranger:centroids, stranger:raises, stranger:returns_nan, stranger:segfaults,
         stranger:loops_forever, stranger:too_large, stranger:calls_exit]
datasets: [stranger:blobs]
schemes: [weight_only]
bits: [w8, w4]
backends: [stranger:NumpyBackend]
timeout_s: 3
measure: {{latency: {LATENCY}}}
"""

ONE_EXAMPLE = """
sweep: one-example
models: [stranger:centroids]
datasets: [{name: "stranger:blobs", options: {count: 1}}]
schemes: [weight_only, static]
bits: [w8, w8a8]
backends: [stranger:NumpyBackend]
measure: {latency: false}
"""


def one_screen(text):
    lines = text.strip().splitlines()
    return len(lines) <= 24 and "Traceback" not in text


@pytest.mark.ray
def test_models_that_misbehave_become_typed_rows_and_the_others_get_results(place):
    done = place.qb("run", place.spec(SPEC), "--out", "out")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    results = place.results("out").set_index(["model", "bits"])
    assert len(results) == 7 * 3
    expected = {
        "stranger:centroids": "ok",
        "stranger:raises": "failed",
        "stranger:returns_nan": "failed",
        "stranger:segfaults": "crashed",
        "stranger:loops_forever": "timeout",
        "stranger:too_large": "oom",
        "stranger:calls_exit": "failed",
    }
    baselines = results["status"].xs("f32", level="bits").to_dict()
    assert baselines == expected
    others = results["status"].drop("f32", level="bits")
    assert (others.xs("stranger:centroids", level="model") == "ok").all()
    assert (others.drop("stranger:centroids", level="model") == "failed").all()
    errors = results["error"].xs("f32", level="bits")
    assert "the weights file is not there" in errors["stranger:raises"]
    assert "stranger.py:" in errors["stranger:raises"]
    assert "NaN" in errors["stranger:returns_nan"]
    assert "Segmentation fault" in errors["stranger:segfaults"]
    assert "timeout_s" in errors["stranger:loops_forever"]
    # The attempts: a crash is tried once more, a hang is not.
    attempts = results["attempt"].xs("f32", level="bits")
    assert attempts["stranger:segfaults"] == 2
    assert attempts["stranger:loops_forever"] == 1
    again = place.qb("run", "sweep.yaml", "--out", "out")
    assert again.returncode == 3
    assert "21/21 done; nothing new to run" in again.stderr


def test_a_dataset_of_one_example_says_so_where_it_matters(place):
    done = place.qb("run", place.spec(ONE_EXAMPLE), "--out", "out", "--pool", "inline")
    assert done.returncode == 3
    results = place.results("out").set_index("bits")
    assert results.loc["w8", "status"] == "ok"
    assert results.loc["w8", "delta_high"] - results.loc["w8", "delta_low"] > 1
    assert results.loc["w8a8", "status"] == "failed"
    assert "calibration examples" in results.loc["w8a8", "error"]


def test_a_folder_of_another_sweep_is_left_alone(place):
    spec = place.spec(ONE_EXAMPLE)
    place.qb("run", spec, "--out", "out", "--pool", "inline")
    before = place.results("out")
    other = place.spec(ONE_EXAMPLE.replace("one-example", "another"), "other.yaml")
    done = place.qb("run", other, "--out", "out", "--pool", "inline")
    assert done.returncode == 2
    assert "one-example" in done.stderr
    assert one_screen(done.stderr)
    assert place.results("out").equals(before)


@pytest.mark.parametrize("out", ["sweep.yaml", "sweep.yaml/deeper", "/proc/no/such"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(place, out):
    done = place.qb("run", place.spec(ONE_EXAMPLE), "--out", out, "--pool", "inline")
    assert done.returncode == 2
    assert one_screen(done.stderr)
    assert place.log() == []


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (("stranger:centroids", "digit-cnn"), "3:10", "did you mean 'digits-cnn'"),
        (("backends:", "backend:"), "7:1", "did you mean 'backends'"),
        (("[w8, w8a8]", "[w1a0]"), "6:8", "2–16"),
        (("[weight_only, static]", "[]"), "5:", "schemes"),
        (("measure: ", "\tmeasure: "), "8:1", "tab"),
        (("measure: ", "exclude: [{bits: w5}]\nmeasure: "), "8:", "w5"),
    ],
)
def test_a_wrong_spec_is_told_line_column_and_remedy(place, change, where, message):
    spec = place.spec(ONE_EXAMPLE.replace(*change))
    for command in (["plan", spec], ["run", spec, "--out", "out"]):
        done = place.qb(*command)
        assert done.returncode == 2, done.stdout
        assert f"error: sweep.yaml:{where}" in done.stderr
        assert message in done.stderr
        assert one_screen(done.stderr)
    assert not (place.folder / "out").exists()


def test_a_spec_of_ten_megabytes_is_refused_at_once(place):
    spec = place.spec(ONE_EXAMPLE + "# " + "x" * 10_000_000 + "\n")
    done = place.qb("plan", spec)
    assert done.returncode == 2
    assert one_screen(done.stderr)
    assert len(done.stderr) < 1_000


def test_debug_shows_the_traceback(place):
    spec = place.spec(ONE_EXAMPLE.replace("[w8, w8a8]", "[w1a0]"))
    assert "Traceback" in place.qb("--debug", "plan", spec).stderr


def test_a_cluster_for_a_pool_without_one_is_refused(place):
    done = place.qb("run", place.spec("sweep: x\n"), "--pool", "inline", "--address", "auto")
    assert done.returncode == 2
    assert "leave --address out" in done.stderr


@pytest.mark.parametrize(
    ("pattern", "hint"), [("raises/w8", "'raises/w8' matches no cell"), ("faild", "'failed'")]
)
def test_a_rerun_of_what_is_no_cell_is_refused_with_the_nearest_name(place, pattern, hint):
    spec = place.spec(
        "sweep: x\nmodels: [stranger:centroids]\ndatasets: [stranger:blobs]\n"
        "schemes: [weight_only]\nbits: [w8]\nbackends: [stranger:NumpyBackend]\n"
    )
    done = place.qb("run", spec, "--out", "out", "--pool", "inline", "--rerun", pattern)
    assert done.returncode == 2
    assert hint in done.stderr
    assert not (place.folder / "out").exists()
