"""Places that run artifacts by an agent: a board behind a real SSH server, another Python."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest
from old_runtime import python_with_tflite_runtime
from ssh_server import wait_until
from worker_stubs import FLOAT

from qb_cluster.contracts import Artifact, ArtifactFacts, Bits, Device, Measure, Ref, Task
from qb_cluster.errors import BoardLostError
from qb_cluster.worker import Owner, Worker
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.site import Elsewhere
from qb_cluster.worker.stage import Loaded

RUNTIME = "stranger_board"
FACTS = ArtifactFacts(1, 1, 1)
GARBAGE = Artifact(b"garbage", "npz", FACTS)
BASELINE = replace(
    FLOAT,
    model=Ref("m", "stranger:centroids"),
    dataset=Ref("d", "stranger:blobs"),
    backend=Ref("b", "stranger:BoardBackend"),
    measure=Measure(latency=None),
)
W8 = replace(BASELINE, cell_id="quantized", scheme=Ref("weight_only", "weight_only"), bits=Bits(8))


pytestmark = pytest.mark.usefixtures("stranger")


@pytest.fixture
def ann(board):
    site = Elsewhere(board, Owner("run 1", "ann on desk"))
    yield site
    site.close()


@pytest.fixture
def bob(board):
    site = Elsewhere(board, Owner("run 2", "bob on lap"))
    yield site
    site.close()


@pytest.fixture
def loaded(stranger):
    return Loaded(stranger.BoardBackend(), None, None, None)


@pytest.fixture
def artifact(stranger):
    return stranger.BoardBackend().convert(stranger.centroids, None)


def agents(board):
    """Pids of the sessions whose agents are in a board's folder."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(board.folder in word for word in process.info["cmdline"] or ())
    }


def test_a_file_that_is_refused_costs_the_agent_and_not_the_board(ann, bob, loaded, artifact):
    assert ann.arrive(RUNTIME) is None
    first = ann.facts["pid"]
    with pytest.raises(ValueError, match="pickle"):
        ann.open(GARBAGE, loaded, 1, ())
    assert bob.arrive(RUNTIME).startswith("ann on desk since ")
    run = ann.open(artifact, loaded, 1, ())
    assert run({"input": np.ones((2, 8), np.float32)})["scores"].shape == (2, 4)
    assert ann.facts["pid"] != first
    wait_until(lambda: not psutil.pid_exists(first))
    assert bob.arrive(RUNTIME).startswith("ann on desk since ")


def test_whoever_waits_for_a_board_asks_again_by_one_agent(ann, bob, board):
    assert ann.arrive(RUNTIME) is None
    assert bob.arrive(RUNTIME) is not None
    waiting = agents(board)
    for _ in range(3):
        assert bob.arrive(RUNTIME) is not None
        assert agents(board) == waiting
    ann.close()
    wait_until(lambda: bob.arrive(RUNTIME) is None)
    assert agents(board) < waiting


def test_a_board_that_was_lost_and_that_others_have_is_not_waited_for(ann, bob, loaded, artifact):
    assert ann.arrive(RUNTIME) is None
    psutil.Process(ann.facts["pid"]).kill()
    wait_until(lambda: bob.arrive(RUNTIME) is None)
    ann.close()
    with pytest.raises(BoardLostError, match=r"was lost, and now bob on lap since .+ has it"):
        ann.open(artifact, loaded, 1, ())


def test_a_file_that_is_refused_costs_the_agent_of_another_python(loaded, artifact):
    site = Elsewhere(python_with_tflite_runtime(), Owner("", ""))
    with pytest.raises(ValueError, match="pickle"):
        site.open(GARBAGE, loaded, 1, ())
    first = site.facts["pid"]
    site.open(artifact, loaded, 1, ())
    assert site.facts["pid"] != first
    site.close()


@pytest.fixture
def worker(tmp_path):
    """Give a worker whose backend has a Python with a runtime alone, or none of its own."""

    def worker(**pythons):
        return Worker(tmp_path / "run", ArtifactCache(tmp_path / "off", 0), pythons=pythons)

    return worker


def test_a_cell_whose_baseline_ran_on_another_runtime_fails_and_both_are_named(worker):
    here = worker()
    there = worker(numpy=python_with_tflite_runtime())
    baseline = here.run(Task(BASELINE, "quality", 1, ()))
    assert (baseline.status, baseline.quality.content.runtime) == ("ok", None)
    outcome = there.run(Task(W8, "quality", 1, (), baseline.quality))
    assert outcome.status == "failed"
    assert "device 'cpu' runs this on numpy 1." in outcome.error
    assert "ran the float baseline on the node's own libraries" in outcome.error
    baseline = there.run(Task(BASELINE, "quality", 1, ()))
    assert baseline.quality.content.runtime.startswith("numpy 1.")
    outcome = there.run(Task(W8, "quality", 1, (), baseline.quality))
    assert outcome.status == "ok", outcome.traceback
    outcome = here.run(Task(replace(W8, execution="simulated"), "quality", 1, (), baseline.quality))
    assert outcome.status == "ok", outcome.traceback
    there.leave()


def test_a_python_without_any_runtime_ends_its_cells_unsupported_and_says_what_to_do(
    worker, tmp_path
):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    there = worker(numpy=tmp_path / "bare" / "bin" / "python")
    outcome = there.run(Task(BASELINE, "quality", 1, ()))
    assert outcome.status == "unsupported"
    assert outcome.error.startswith(f"interpreter '{tmp_path}/bare/bin/python': ")
    assert "has no NumPy that can be loaded" in outcome.error
    assert "[environments] of node.toml" in outcome.error


def test_a_latency_stage_that_comes_to_another_runtime_times_nothing(worker):
    """The row says which runtime gave its quality: its times are of the same."""
    here, there = worker(), worker(numpy=python_with_tflite_runtime())
    timed = replace(W8, measure=FLOAT.measure)
    baseline = there.run(Task(BASELINE, "quality", 1, ())).quality
    quality = there.run(Task(timed, "quality", 1, (), baseline)).quality
    outcome = there.run(Task(timed, "latency", 1, (), baseline, quality))
    assert outcome.status == "ok", outcome.traceback
    outcome = here.run(Task(timed, "latency", 1, (), baseline, quality))
    assert outcome.status == "failed"
    assert "runs this on the node's own libraries, and ran the float baseline on" in outcome.error
    there.leave()


def test_a_baseline_of_before_runtimes_were_noted_does_for_a_device_apart(worker):
    apart = Device("pi", labels=(("a", "b"),), prepared_on=(("c", "d"),))
    here = worker()
    float_cell, w8 = (replace(cell, device=apart) for cell in (BASELINE, W8))
    made = here.run(Task(float_cell, "prepare", 1, ()))
    baseline = here.run(Task(float_cell, "quality", 1, (), prepared=made)).quality
    old = replace(baseline, content=replace(baseline.content, runtime=None))
    made = here.run(Task(w8, "prepare", 1, (), old))
    outcome = here.run(Task(w8, "quality", 1, (), old, prepared=made))
    assert outcome.status == "ok", outcome.traceback


def test_what_a_baseline_stands_for_has_the_runtime_that_is_apart(worker):
    there = worker(numpy=python_with_tflite_runtime())
    baseline = there.run(Task(BASELINE, "quality", 1, ())).quality.content
    assert there.run(Task(BASELINE, "content", 1, ())).content == baseline
    assert worker().run(Task(BASELINE, "content", 1, ())).content.changes(baseline) == ["runtime"]
    there.leave()


def test_a_device_apart_from_its_converters_is_asked_what_runs_there(worker):
    apart = replace(BASELINE, device=Device("pi", labels=(("a", "b"),), prepared_on=(("c", "d"),)))
    content = worker().run(Task(apart, "content", 1, ())).content
    assert content.runtime is None
    asked = worker().run(Task(apart, "runtime", 1, ()))
    assert (asked.status, asked.values["runtime"].split()[0]) == ("ok", "numpy")
    there = worker(numpy=python_with_tflite_runtime())
    assert there.run(Task(apart, "content", 1, ())).content.runtime is None
    assert there.run(Task(apart, "runtime", 1, ())).values["runtime"].startswith("numpy 1.")
    there.leave()
