"""Kill the driver at any moment: the same command finishes the rest and repeats nothing."""

import json
import signal
import subprocess
from collections import Counter

import pandas as pd
import psutil
import pytest
from conftest import LATENCY
from ssh_server import wait_until

from qb_cluster.nodes.cores import usable_cores

THREADS = max(1, len(usable_cores()) // 2)  # so that three workers at most come up anywhere
SPEC = f"""
sweep: killed
models: [stranger:centroids, {{name: "stranger:centroids", label: big, options: {{scale: 10}}}}]
datasets: [stranger:blobs]
schemes: [weight_only, static]
bits: [w8, w7, w6, w5, w4, w3, w8a8, w6a8, w4a8, w4a4]
backends: [{{name: "stranger:NumpyBackend", options: {{pause_s: 0.15}}}}]
devices: [{{name: cpu, threads: {THREADS}}}]
measure: {{latency: {LATENCY}}}
"""
QUALITY = ["cell_id", "status", "value", "delta", "delta_low", "flips_worse", "sqnr_db", "cosine"]


def table(place, out):
    return place.results(out)[QUALITY].sort_values("cell_id").reset_index(drop=True)


def baselines(place):
    plan = place.qb("plan", "sweep.yaml", "--json").stdout.splitlines()
    return {cell["cell_id"] for cell in map(json.loads, plan) if cell["scheme"] == "float"}


def durable(place, out):
    """Cells whose quality is on disk: finished ones, and those still to be timed."""
    finished = set(place.results(out)["cell_id"])
    return finished | set(pd.read_parquet(place.folder / out / "stages")["cell_id"])


def quantized(place):
    """How often each cell was quantized, without the simulated twins of native ones."""
    return Counter(line for line in place.log() if line != "simulated weight_only w8")


def wait_for_cells(place, out, count):
    def are_there():
        try:
            return len(durable(place, out)) >= count
        except FileNotFoundError:
            return False  # the driver has not made the folder yet

    wait_until(are_there, 150)


@pytest.mark.ray
def test_kill_nine_of_the_driver_and_a_second_run_give_the_undisturbed_table(place):
    spec = place.spec(SPEC)
    undisturbed = place.qb("run", spec, "--out", "undisturbed", "--pool", "inline")
    assert undisturbed.returncode == 0, undisturbed.stderr
    quantized_once = quantized(place)
    (place.folder / "log.txt").unlink()

    place.hold(12)
    driver = place.popen("run", spec, "--out", "out")
    wait_for_cells(place, "out", 6)
    workers = [
        child
        for child in psutil.Process(driver.pid).children(recursive=True)
        if "Agent" not in child.name()  # Ray's agents notice only some thirty seconds later
    ]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    on_disk = durable(place, "out") - baselines(place)
    ran_before = quantized(place)
    place.go()

    done = place.qb("run", spec, "--out", "out")
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(table(place, "out"), table(place, "undisturbed"))
    # What was on disk was not run again: at most the cells in the workers' hands, and in the
    # commit under way, at the moment of the kill were.
    ran = quantized(place)
    repeated = sum((ran - quantized_once).values())
    lost = sum(ran_before.values()) - len(on_disk)
    assert 3 <= len(on_disk) < len(table(place, "out"))
    assert repeated == lost
    predictions = pd.read_parquet(place.folder / "out" / "predictions")
    assert not predictions.duplicated(["cell_id", "example_id"]).any()
    third = place.qb("run", spec, "--out", "out")
    assert "done; nothing new to run" in third.stderr
    assert quantized(place) == ran


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_what_runs_and_exits_130(place, number):
    spec = place.spec(SPEC)
    place.hold(6)
    driver = place.popen("run", spec, "--out", "out", stderr=subprocess.PIPE)
    wait_for_cells(place, "out", 3)
    place.interrupt(driver, number)
    place.go()
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    # Whatever a worker had begun is on disk: nothing is begun twice.
    on_disk = durable(place, "out") - baselines(place)
    assert sum(quantized(place).values()) == len(on_disk)
    assert len(durable(place, "out")) < 2 * (1 + 6 + 4)


@pytest.mark.ray
def test_a_second_interrupt_stops_at_once_and_loses_nothing_finished(place):
    place.hold()
    driver = place.popen("run", place.spec(SPEC), "--out", "out", stderr=subprocess.PIPE)
    wait_for_cells(place, "out", 2)  # both baselines; the next stages never end
    place.interrupt(driver)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for what runs
        driver.wait(1)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert len(durable(place, "out")) == 2


def test_a_grown_sweep_runs_only_the_new_cells(place):
    spec = place.spec(SPEC.replace("pause_s: 0.15", "pause_s: 0"))
    place.qb("run", spec, "--out", "out", "--pool", "inline")
    before = place.results("out").set_index("cell_id")
    ran = quantized(place)
    grown = place.spec(SPEC.replace("pause_s: 0.15", "pause_s: 0").replace("w3,", "w3, w2,"))
    done = place.qb("run", grown, "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stderr
    after = place.results("out").set_index("cell_id")
    assert len(after) == len(before) + 2
    assert after.loc[before.index, "started_at"].equals(before["started_at"])
    assert quantized(place) - ran == Counter({"native weight_only w2": 2})
