"""Kill anything, resume: the table is that of an undisturbed run, row for row."""

import os
import random
import signal
import time

import pandas as pd
import psutil
import pytest

KILLS = int(os.environ.get("QB_KILLS", "8"))
SEED = int(os.environ.get("QB_SEED", "4"))
MODELS = ", ".join(
    f'{{name: "stranger:centroids", label: m{n}, options: {{scale: {n}}}}}' for n in range(1, 9)
)
BITS = ", ".join([f"w{w}" for w in range(3, 17)] + [f"w{w}a{a}" for w in (4, 8) for a in (4, 8)])
SPEC = f"""
sweep: fire
models: [{MODELS}]
datasets: [stranger:blobs]
schemes: [weight_only, static]
bits: [{BITS}]
backends: [stranger:NumpyBackend]
measure: {{latency: false}}
"""
QUALITY = ["cell_id", "status", "value", "delta", "delta_low", "flips_worse", "sqnr_db", "cosine"]


def table(place, out):
    return place.results(out)[QUALITY].sort_values("cell_id").reset_index(drop=True)


def workers_of(driver):
    """Processes of workers that have a stage in hand."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if process.name().startswith("ray::") and ".run" in process.name():
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def wait_for_workers(driver):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and driver.poll() is None:
        if found := workers_of(driver):
            return found
        time.sleep(0.02)
    return []


def disturb(driver, rng, kills):
    """Kill workers of a driver, and then the driver itself; gives how many died."""
    killed = 0
    for _ in range(rng.randint(0, min(3, kills - 1))):
        time.sleep(rng.uniform(0.1, 0.8))
        if victims := wait_for_workers(driver):
            try:
                rng.choice(victims).send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
            killed += 1
    time.sleep(rng.uniform(0.0, 1.5))
    if driver.poll() is None:
        driver.send_signal(signal.SIGKILL)
        killed += 1
    driver.wait()
    return killed


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(60 + 30 * KILLS)
def test_whatever_is_killed_the_last_resume_gives_the_undisturbed_table(place):
    spec = place.spec(SPEC)
    undisturbed = place.qb("run", spec, "--out", "undisturbed", "--pool", "inline")
    assert undisturbed.returncode == 0, undisturbed.stderr
    rng = random.Random(SEED)
    left, runs = KILLS, 0
    while left > 0:
        runs += 1
        driver = place.popen("run", spec, "--out", "out", env={"STRANGER_PAUSE_S": "0.1"})
        if wait_for_workers(driver):
            left -= disturb(driver, rng, left)
        if driver.wait() == 0:  # all done before all were killed: begin anew
            pd.testing.assert_frame_equal(table(place, "out"), table(place, "undisturbed"))
            (place.folder / "out").rename(place.folder / f"out-{runs}")
    done = place.qb("run", spec, "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    pd.testing.assert_frame_equal(table(place, "out"), table(place, "undisturbed"))
    predictions = pd.read_parquet(place.folder / "out" / "predictions")
    assert not predictions.duplicated(["cell_id", "example_id"]).any()


POISON = """
sweep: poison
models:
  - stranger:centroids
  - {name: "stranger:hangs_in_c", label: hangs}
  - {name: "stranger:hungry", label: hungry}
datasets: [stranger:blobs]
schemes: [static]
bits: [w3a8, w4a8, w5a8, w6a8, w7a8, w8a8, w3a4, w4a4, w5a4, w6a4, w7a4, w8a4]
backends: [{name: "stranger:NumpyBackend", options: {poison: w5a8}}]
measure: {latency: false}
timeout_s: 5
"""


@pytest.mark.ray
def test_a_poison_cell_a_hang_in_c_and_a_hungry_model_cost_their_own_rows_only(place):
    done = place.qb("run", place.spec(POISON), "--out", "out")
    assert done.returncode == 3, done.stdout + done.stderr
    results = place.results("out")
    floats = results[results["scheme"] == "float"].set_index("model")
    assert floats["status"].to_dict() == {
        "stranger:centroids": "ok",
        "hangs": "timeout",
        "hungry": "oom",
    }
    assert floats.loc["hungry", "attempt"] == 2
    good = results[(results["model"] == "stranger:centroids") & (results["scheme"] != "float")]
    statuses = good.set_index("bits")["status"]
    assert statuses.pop("w5a8") == "crashed"
    assert set(statuses) == {"ok"}
    [poison] = good[good["bits"] == "w5a8"].to_dict("records")
    assert poison["attempt"] == 2
    # The story says when, where and what, with the last words of the worker.
    for attempt in ("attempt 1", "attempt 2"):
        assert attempt in poison["story"]
    assert poison["story"].count("Segmentation fault") >= 2
    assert poison["story"].count("about to die of w5a8") == 2
    assert poison["story"].count("UTC") == 2
