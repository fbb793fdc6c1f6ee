"""What `qb run` says to people, and where: stderr, from the first second to the last."""

import signal
import subprocess
import sys

import pytest
from ssh_server import wait_until

SPEC = """
sweep: trial
models: [stranger:centroids, stranger:raises]
datasets: [stranger:blobs]
schemes: [weight_only]
bits: [w8, w4, w2]
backends: [stranger:NumpyBackend]
measure: {latency: false}
"""
NOTHING = """
sweep: nothing
models: [some_plug_ins:model]
datasets: [some_plug_ins:data]
schemes: [weight_only]
bits: [w8, w4]
backends: [some_plug_ins:Missing, some_plug_ins:Choosy]
"""
PLUG_INS = """
from stranger import NumpyBackend
from qb_cluster.contracts import Support

model = data = None

class Missing(NumpyBackend):
    requires = ("module_that_nobody_has",)

class Choosy(NumpyBackend):
    def support(self, quantization):
        return Support(False, "it never does")
"""


def run(place, text, *arguments, pool="inline", **how):
    return place.qb("run", place.spec(text), "--pool", pool, *arguments, **how)


def test_a_run_ends_with_the_reasons_of_what_is_not_ok_and_says_nothing_on_stdout(place):
    told = run(place, SPEC)
    assert told.stdout == ""
    *_, counts, lost, inert, why, end = told.stderr.splitlines()
    assert counts.startswith("8/8 done: 4 failed, 3 ok, 1 not_applied (")
    assert lost.startswith("    3  failed      not run: its float baseline … ended failed: ")
    assert "(e.g. stranger:raises/stranger:blobs/stranger:NumpyBackend/cpu/weight_only/w" in lost
    assert {inert.split()[1], why.split()[1]} == {"failed", "not_applied"}
    assert "the weights file is not there" in why + inert
    assert end == "next: qb report runs/trial"


def test_a_finished_sweep_has_nothing_new_to_run_and_still_says_why(place):
    run(place, SPEC)
    again = run(place, SPEC)
    assert again.returncode == 3
    assert "\n8/8 done; nothing new to run (" in again.stderr
    assert "the weights file is not there" in again.stderr


def test_a_grown_sweep_says_how_many_are_new(place):
    run(place, SPEC.replace(", w2", ""))
    assert " s, 2 new)\n" in run(place, SPEC).stderr


def test_rows_that_the_spec_plans_no_more_are_not_counted(place):
    run(place, SPEC)
    less = run(place, SPEC.replace(", stranger:raises", ""))
    assert less.returncode == 0
    assert "\n4/4 done; nothing new to run (" in less.stderr
    assert "stranger:raises" not in less.stderr


def test_no_progress_nor_status_counts_more_cells_than_the_spec_has(place):
    run(place, SPEC)
    other = SPEC.replace(", stranger:raises", "").replace("w8, w4, w2", "w8, w3")
    told = run(place, other).stderr
    assert "    3 of 3  ok " in told
    assert "\n3/3 done: 3 ok (" in told
    status = place.qb("status", "runs/trial").stdout
    assert "3 of 3 cells finished, 0 left\n6 more rows are of cells that" in status
    assert "\n3 ok\n" in status


def test_an_interrupted_run_says_how_many_of_how_many_and_how_to_resume(place):
    go = place.folder / "go"
    command = "run", place.spec(SPEC), "--pool", "inline"
    process = place.popen(*command, env={"STRANGER_WAITS_FOR": str(go)}, stderr=subprocess.PIPE)
    wait_until(place.log, 60)
    process.send_signal(signal.SIGINT)
    go.touch()
    _, told = process.communicate(timeout=60)
    assert "Finishing running cells; press Ctrl-C again to abort.\n" in told
    assert "/8 done: " in told
    assert "8/8 done" not in told
    assert told.endswith("\nStopped. Run the same command again to resume.\n")


def test_what_a_plug_in_prints_is_no_data_of_ours(place):
    (place.folder / "talkative.py").write_text(
        "from stranger import *\n\ndef model():\n    print('hello')\n    return centroids()\n"
    )
    told = run(place, SPEC.replace("stranger:raises", "talkative:model"))
    assert (told.returncode, told.stdout) == (0, "")
    assert "hello\n" in told.stderr


@pytest.mark.ray
def test_every_phase_is_told_when_it_begins(place):
    told = run(place, SPEC, pool="ray")
    phases = [line for line in told.stderr.splitlines() if line.endswith(" …")]
    assert phases == [
        "reading the spec …",
        "opening runs/trial …",
        "starting Ray …",
        "starting workers …",
        "loading models …",
        "running cells …",
    ]


# Nothing can run


@pytest.fixture
def hopeless(place):
    (place.folder / "some_plug_ins.py").write_text(PLUG_INS)
    return place


def test_where_nothing_can_run_every_reason_is_told_before_there_is_a_folder(hopeless):
    told = run(hopeless, NOTHING, pool="ray")
    assert (told.returncode, told.stdout) == (2, "")
    assert "error: no cell of sweep 'nothing' can run here:\n" in told.stderr
    assert (
        "    2  unsupported module 'module_that_nobody_has' is not installed (e.g. " in told.stderr
    )
    assert "    2  unsupported native: it never does; simulated: it never does (e.g." in told.stderr
    assert "starting" not in told.stderr
    assert not (hopeless.folder / "runs").exists()


def test_a_registered_backend_that_is_missing_comes_with_a_line_that_installs_it(hopeless):
    info = hopeless.folder / "far-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[qb_cluster.backends]\nfar = some_plug_ins:Missing\nfarther = some_plug_ins:Missing\n"
    )
    text = NOTHING.replace("some_plug_ins:Missing", "far, farther")
    told = run(hopeless, text, env={"PYTHONPATH": str(hopeless.folder)})
    assert told.returncode == 2
    last = told.stderr.splitlines()[-1]
    assert last.startswith("to install what is missing: ")
    assert last.endswith('pip install "far[numpy]"')


def test_a_mixed_sweep_runs_what_can_run(hopeless):
    text = NOTHING.replace("some_plug_ins:model", "stranger:centroids")
    text = text.replace("some_plug_ins:data", "stranger:blobs")
    told = run(hopeless, text.replace("backends: [", "backends: [stranger:NumpyBackend, "))
    assert told.returncode == 0
    assert "\n7/7 done: 4 unsupported, 3 ok (" in told.stderr
    assert "module 'module_that_nobody_has' is not installed (e.g. " in told.stderr


def test_the_rows_of_earlier_runs_are_left_alone_when_their_backend_is_gone(hopeless):
    text = NOTHING.replace("some_plug_ins:model", "stranger:centroids")
    text = text.replace("some_plug_ins:data", "stranger:blobs").replace(
        ", some_plug_ins:Choosy", ""
    )
    run(hopeless, text, env={"QB_NODE_CONFIG": node_config(hopeless)})
    before = hopeless.results("runs/nothing")
    assert len(before) == 3
    told = run(hopeless, text)
    assert told.returncode == 2
    assert hopeless.results("runs/nothing").equals(before)


def node_config(place):
    """Have the backend in a Python of its own, where nobody looks for its modules."""
    config = place.folder / "node.toml"
    config.write_text(f'[environments]\nnumpy = "{sys.executable}"\n')
    return str(config)


def test_what_is_missing_here_may_be_there_on_a_cluster(hopeless):
    told = hopeless.qb("run", hopeless.spec(NOTHING), "--address", "127.0.0.1:9")
    assert "can run here" not in told.stderr
    assert "4/4 done: 4 unsupported (" in told.stderr
