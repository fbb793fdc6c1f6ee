"""Kill the driver at any moment: the same command finishes the rest and repeats nothing."""

import signal
import time
from collections import Counter

import pandas as pd
import psutil
import pytest
from conftest import LATENCY

SPEC = f"""
sweep: killed
models: [stranger:centroids, {{name: "stranger:centroids", label: big, options: {{scale: 10}}}}]
datasets: [stranger:blobs]
schemes: [weight_only, static]
bits: [w8, w7, w6, w5, w4, w3, w8a8, w6a8, w4a8, w4a4]
backends: [{{name: "stranger:NumpyBackend", options: {{pause_s: 0.15}}}}]
measure: {{latency: {LATENCY}}}
"""
QUALITY = ["cell_id", "status", "value", "delta", "delta_low", "flips_worse", "sqnr_db", "cosine"]


def table(place, out):
    return place.results(out)[QUALITY].sort_values("cell_id").reset_index(drop=True)


def durable(place, out):
    """Cells whose quality is on disk: finished ones, and those still to be timed."""
    finished = set(place.results(out)["cell_id"])
    return finished | set(pd.read_parquet(place.folder / out / "stages")["cell_id"])


def wait_for_cells(place, out, count):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if len(durable(place, out)) >= count:
                return
        except FileNotFoundError:
            pass  # the driver has not made the folder yet
        time.sleep(0.05)
    raise AssertionError(f"{count} cells did not come")


@pytest.mark.ray
def test_kill_nine_of_the_driver_and_a_second_run_give_the_undisturbed_table(place):
    spec = place.spec(SPEC)
    undisturbed = place.qb("run", spec, "--out", "undisturbed", "--pool", "inline")
    assert undisturbed.returncode == 0, undisturbed.stderr
    quantized_once = Counter(place.log())
    (place.folder / "log.txt").unlink()

    driver = place.popen("run", spec, "--out", "out")
    wait_for_cells(place, "out", 6)
    workers = [
        child
        for child in psutil.Process(driver.pid).children(recursive=True)
        if "Agent" not in child.name()  # Ray's agents notice only some thirty seconds later
    ]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    on_disk = durable(place, "out")
    ran_before = Counter(place.log())

    done = place.qb("run", spec, "--out", "out")
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(table(place, "out"), table(place, "undisturbed"))
    # What was on disk was not run again: at most the cells in the workers' hands, and in the
    # commit under way, at the moment of the kill were.
    ran = Counter(place.log())
    repeated = sum((ran - quantized_once).values())
    lost = sum(ran_before.values()) - len(on_disk)
    assert 6 <= len(on_disk) < len(table(place, "out"))
    assert repeated == lost
    predictions = pd.read_parquet(place.folder / "out" / "predictions")
    assert not predictions.duplicated(["cell_id", "example_id"]).any()
    third = place.qb("run", spec, "--out", "out")
    assert "0 of them now" in third.stdout
    assert Counter(place.log()) == ran


@pytest.mark.ray
def test_an_interrupt_commits_what_has_ended_and_exits_130(place):
    spec = place.spec(SPEC)
    driver = place.popen("run", spec, "--out", "out")
    wait_for_cells(place, "out", 3)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    done = place.qb("run", spec, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert len(table(place, "out")) == 2 * (1 + 6 + 4)


def test_a_grown_sweep_runs_only_the_new_cells(place):
    spec = place.spec(SPEC.replace("pause_s: 0.15", "pause_s: 0"))
    place.qb("run", spec, "--out", "out", "--pool", "inline")
    before = place.results("out").set_index("cell_id")
    ran = len(place.log())
    grown = place.spec(SPEC.replace("pause_s: 0.15", "pause_s: 0").replace("w3,", "w3, w2,"))
    done = place.qb("run", grown, "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    after = place.results("out").set_index("cell_id")
    assert len(after) == len(before) + 2
    assert after.loc[before.index, "started_at"].equals(before["started_at"])
    assert len(place.log()) == ran + 2
