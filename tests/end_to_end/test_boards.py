"""Sweeps over boards behind a real SSH server: equal to the plan whatever happens on the way."""

import dataclasses
import getpass
import json
import platform
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import LATENCY
from old_runtime import python_with_tflite_runtime
from ssh_server import wait_until

MODELS = [{"name": "stranger:centroids", "label": f"m{n}", "options": {"scale": n}}
          for n in range(1, 5)]  # fmt: skip
SPEC = f"""
sweep: boards
models: {json.dumps(MODELS)}
datasets: [stranger:blobs]
schemes: [weight_only]
bits: [w8, w2]
backends: ["stranger:BoardBackend"]
measure: {{latency: {LATENCY}}}
"""
NUMBERS = ["status", "value", "delta", "flips_worse", "sqnr_db", "cosine"]
KEYS = ["model", "scheme", "bits"]


@pytest.fixture
def boards(sshd, tmp_path):
    """Two boards: two folders behind one server. A test that leaves something there fails."""
    folders = [tmp_path / name for name in ("alpha", "beta")]
    for folder in folders:
        folder.mkdir()
    yield [sshd.board(folder, sys.executable) for folder in folders]
    for folder in folders:
        wait_until(lambda folder=folder: not list(folder.iterdir()))


def device(name, board, **more):
    keys = {key: value for key, value in dataclasses.asdict(board).items() if value}
    return json.dumps({"name": name, "ssh": keys, **more})


def on(*devices):
    return f"{SPEC}devices: [{', '.join(devices)}]\n"


def numbers(results, device_name):
    rows = results[results["device"] == device_name]
    return rows[KEYS + NUMBERS].sort_values(KEYS).reset_index(drop=True)


def test_a_board_gives_the_numbers_of_this_machine_and_says_where_it_ran(place, boards):
    text = on("cpu", device("alpha", boards[0]), device("beta", boards[1], threads=2))
    done = place.qb("run", place.spec(text), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out")
    assert len(results) == 3 * 4 * 3
    assert set(numbers(results, "cpu")["status"]) == {"ok", "not_applied"}
    for name in ("alpha", "beta"):
        pd.testing.assert_frame_equal(numbers(results, "cpu"), numbers(results, name))
    on_boards = results[(results["device"] != "cpu") & (results["status"] == "ok")]
    assert set(on_boards["runtime"]) == {f"numpy {np.__version__}"}
    assert on_boards["latency_median_ns"].notna().all()
    floats = results[results["scheme"].isna() | (results["scheme"] == "float")]
    assert floats["notes"].isna().all(), set(floats["notes"])
    assert on_boards["host"].notna().all()
    texts = pd.read_parquet(place.folder / "out" / "environments")["environment_json"]
    there = [json.loads(text) for text in texts if "prepared" in text]
    assert {name for one in there for name in one["libraries"]} == {"qb-cluster", "numpy"}
    assert all(one["prepared"]["libraries"]["numpy"] == np.__version__ for one in there)
    # The second board takes what was made for the first: once a sweep, wherever it runs.
    made = Counter(place.log())
    assert made["native weight_only w8"] == 4 * 2  # for the CPU, and for both boards
    assert made["simulated weight_only w8"] == 4
    assert place.qb("report", "out").returncode == 0
    agreement = pd.read_parquet(place.folder / "out" / "report" / "agreement.parquet")
    assert {"cpu", "alpha", "beta"} == set(agreement["device"])
    assert (agreement.query("execution == other_execution")["top1_agreement"] == 1).all()
    assert {"cpu", "alpha", "beta"} == set(
        pd.read_parquet(place.folder / "out" / "report" / "devices.parquet")["device"]
    )


@pytest.mark.nightly
def test_a_board_that_was_upgraded_runs_its_cells_again_and_no_others(place, boards):
    def run(python):
        board = dataclasses.replace(boards[0], python=str(python))
        spec = place.spec(on("cpu", device("alpha", board)))
        done = place.qb("run", spec, "--out", "out", "--pool", "inline")
        assert done.returncode == 0, done.stdout + done.stderr
        # Sorted: in which order rows lie in the folder is no promise.
        results = place.results("out").sort_values("cell_id").set_index("device")
        return done.stderr, results.loc["alpha"], results.loc["cpu"]

    _, before, others = run(python_with_tflite_runtime())
    told, after, same = run(sys.executable)
    assert told.count("runtime changed since its rows were written") == 4
    pd.testing.assert_frame_equal(others, same)
    assert {version[:7] for version in before["runtime"].dropna()} == {"numpy 1"}
    assert set(after["runtime"].dropna()) == {f"numpy {np.__version__}"}
    assert set(before["cell_id"]) == set(after["cell_id"])
    assert "done; nothing new to run" in run(sys.executable)[0]


def agents_of(folder):
    """Pids of the sshd sessions whose agents keep their files in a folder."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder / "quantbench-") in word for word in process.info["cmdline"] or ())
    ]


def rows(place, out="out"):
    try:
        return len(pd.read_parquet(place.folder / out / "results", columns=["cell_id"]))
    except FileNotFoundError:
        return 0


@pytest.mark.ray
def test_a_board_that_is_cut_off_and_crashes_comes_back_and_every_cell_has_its_row(
    place, boards, tmp_path
):
    text = on(device("alpha", boards[0]), device("beta", boards[1]))
    folders = tmp_path / "alpha", tmp_path / "beta"
    for folder in folders:
        (folder / "hold").touch()
    driver = place.popen("run", place.spec(text), "--out", "out")
    for folder in folders:
        wait_until((folder / "held").exists)
    (agent,), (other,) = map(agents_of, folders)
    psutil.Process(agent).parent().kill()  # its SSH session: the network is gone
    wait_until(lambda: agent not in agents_of(folders[0]))
    psutil.Process(other).send_signal(signal.SIGSEGV)
    for folder in folders:
        (folder / "hold").unlink()
    assert driver.wait(120) == 0
    for folder in folders:
        (folder / "held").unlink()
    results = place.results("out")
    assert len(results) == 2 * 4 * 3
    assert set(results["status"]) == {"ok", "not_applied"}
    pd.testing.assert_frame_equal(numbers(results, "alpha"), numbers(results, "beta"))


@pytest.mark.nightly
def test_the_second_sweep_that_wants_a_board_waits_and_says_for_whom(place, boards, tmp_path):
    text = on(device("alpha", boards[0]))
    first_spec = place.spec(text.replace("sweep: boards", "sweep: the-first"), "first.yaml")
    go = tmp_path / "go"  # until it is there, the first sweep is not done
    command = "run", first_spec, "--out", "first", "--pool", "inline"
    first = place.popen(*command, env={"STRANGER_WAITS_FOR": str(go)})
    wait_until((tmp_path / "alpha" / "quantbench.lock").exists, 60)
    told = tmp_path / "told.txt"
    with told.open("w") as file:
        second = place.popen("run", place.spec(text), "--out", "out", "--pool=inline", stderr=file)
    wait_until(lambda: "is taken by" in told.read_text(), 60)
    who = f"{getpass.getuser()} on {platform.node()}, sweep the-first since 20"
    assert f"board '127.0.0.1' is taken by {who}" in " ".join(told.read_text().split())
    assert rows(place) == 0
    assert (first.poll(), second.poll()) == (None, None)
    go.touch()
    assert first.wait(60) == 0
    assert second.wait(60) == 0
    one, other = (numbers(place.results(out), "alpha") for out in ("first", "out"))
    assert len(one) == 4 * 3
    pd.testing.assert_frame_equal(one, other)


def test_a_board_that_computes_wrongly_without_our_knowing_is_a_mismatch(place, boards):
    text = on("cpu", device("alpha", boards[0])).replace("BoardBackend", "WrongOnBoards")
    done = place.qb("run", place.spec(text), "--out", "out", "--pool", "inline")
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out").set_index(["device", "bits"]).sort_index()
    assert set(results.loc["cpu", "status"]) == {"ok", "not_applied"}
    assert set(results.loc[("alpha", "f32"), "status"]) == {"ok"}
    wrong = results.loc[("alpha", "w8")]
    assert set(wrong["status"]) == {"kernel_mismatch"}
    assert (wrong["sqnr_db"] < wrong["reference_sqnr_db"] - 15).all()
    assert wrong["speedup"].isna().all()
    for row in wrong.itertuples():
        assert re.search(
            rf"median SQNR -?\d+\.\d dB where its simulation on {row.simulator} gives \d+\.\d dB",
            row.error,
        )


@pytest.fixture
def board_python(tmp_path):
    """Make a Python for a board, in which some code runs before anything else does."""

    def make(code):
        python = tmp_path / "board_python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", python], check=True)
        (site,) = python.glob("lib/python3*/site-packages")
        (site / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
        (site / "sitecustomize.py").write_text(code)
        return str(python / "bin" / "python")

    return make


NO_MEMORY = """
import pathlib
read_text = pathlib.Path.read_text
pathlib.Path.read_text = lambda path, *how, **more: (
    "MemAvailable: 0 kB" if str(path) == "/proc/meminfo" else read_text(path, *how, **more)
)
"""
NO_DISK = """
import os, types
os.statvfs = lambda path: types.SimpleNamespace(f_bavail=3, f_frsize=1000)
"""


@pytest.mark.parametrize(
    ("belief", "status", "message"),
    [
        (NO_MEMORY, "oom", r"the artifact has \d+ bytes and 0 bytes of memory are free"),
        (NO_DISK, "failed", r"the artifact has \d+ bytes and {folder} has 3,000 bytes free; free"),
    ],
    ids=["memory", "disk"],
)
def test_an_artifact_that_a_board_has_no_room_for_is_told_with_both_sizes(
    place, boards, board_python, belief, status, message
):
    """The board is made to believe that it is full."""
    board = dataclasses.replace(boards[0], python=board_python(belief))
    done = place.qb(
        "run", place.spec(on("cpu", device("alpha", board))), "--out=out", "--pool=inline"
    )
    assert done.returncode == 3, done.stdout + done.stderr
    results = place.results("out")
    assert set(results.loc[results["device"] == "cpu", "status"]) == {"ok", "not_applied"}
    full = results[(results["device"] == "alpha") & (results["bits"] == "f32")]
    assert set(full["status"]) == {status}
    for error in full["error"]:
        assert re.search(message.format(folder=boards[0].folder), error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "no-such-host.invalid"}, "cannot be reached"),
        ({"python": "/nowhere/python3"}, "has no '/nowhere/python3' that can be run"),
        ({"folder": "/nowhere"}, "the agent cannot be kept in /nowhere"),
        ({"known_hosts": "/dev/null"}, "host key that is not known here"),
    ],
)
def test_a_board_that_will_not_do_is_told_before_anything_runs(place, boards, change, message):
    spec = place.spec(on("cpu", device("alpha", dataclasses.replace(boards[0], **change))))
    done = place.qb("run", spec, "--out", "out", "--pool", "inline")
    assert done.returncode == 2
    assert "\nerror: device 'alpha': board '" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert rows(place) == 0


def test_a_python_of_a_board_that_is_too_old_is_told_before_anything_runs(
    place, boards, board_python
):
    python = board_python("import sys; sys.version_info = (3, 7, 5, 'final', 0)")
    spec = place.spec(on("cpu", device("alpha", dataclasses.replace(boards[0], python=python))))
    done = place.qb("run", spec, "--out", "out", "--pool", "inline")
    assert done.returncode == 2, done.stdout + done.stderr
    told = "this is Python 3.7.5; the agent needs 3.8 or newer, so name another python for this"
    assert f"error: device 'alpha': board '127.0.0.1': {told} board" in done.stderr
    assert "Traceback" not in done.stderr
    assert rows(place) == 0


def test_threads_that_a_board_has_not_are_told(place, boards):
    spec = place.spec(on(device("alpha", boards[0], threads=999)))
    done = place.qb("run", spec, "--out", "out", "--pool", "inline")
    assert done.returncode == 2
    assert "device 'alpha' asks for 999 threads and its board has" in done.stderr


def test_artifacts_run_in_the_python_that_the_node_s_owner_says(place, tmp_path):
    """That Python has a runtime alone, so its agent runs what was prepared here."""
    config = tmp_path / "node.toml"
    config.write_text(f'[environments]\nnumpy = "{python_with_tflite_runtime()}"\n')
    spec = place.spec(SPEC + "devices: cpu\n")
    env = {"QB_NODE_CONFIG": str(config)}
    done = place.qb("run", spec, "--out", "out", "--pool", "inline", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out")
    assert set(results["status"]) == {"ok", "not_applied"}
    assert {version[:7] for version in results["runtime"].dropna()} == {"numpy 1"}


@pytest.fixture
def other_python(tmp_path):
    """Another interpreter with QuantBench and what it needs, as a node's owner would install it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    (site / "others.pth").write_text(
        "\n".join(path for path in sys.path if "site-packages" in path)
    )
    return tmp_path / "env" / "bin" / "python"


@pytest.mark.parametrize("pool", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_backend_has_a_python_of_its_own_that_prepares_too(place, tmp_path, other_python, pool):
    config = tmp_path / "node.toml"
    config.write_text(f'[environments]\nnumpy = "{other_python}"\n')
    text = SPEC.replace("BoardBackend", "WhichPython") + "devices: cpu\n"
    env = {"QB_NODE_CONFIG": str(config)}
    done = place.qb("run", place.spec(text), "--out", "out", "--pool", pool, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(place.results("out")["status"]) == {"ok", "not_applied"}
    assert set(place.log()) >= {f"prepared by {other_python}"}
    assert not {word for word in place.log() if sys.executable in word}


def test_a_backend_whose_own_python_dies_costs_its_cell_alone(place, tmp_path, other_python):
    config = tmp_path / "node.toml"
    config.write_text(f'[environments]\nnumpy = "{other_python}"\n')
    text = SPEC.replace(
        '"stranger:BoardBackend"',
        '{name: "stranger:NumpyBackend", label: n, options: {poison: w8}}',
    )
    env = {"QB_NODE_CONFIG": str(config)}
    done = place.qb("run", place.spec(text), "--out", "out", "--pool", "inline", env=env)
    assert done.returncode == 3, done.stdout + done.stderr
    results = place.results("out")
    assert results["status"].value_counts().to_dict() == {"ok": 4, "not_applied": 4, "crashed": 4}
    died = results[results["status"] == "crashed"].iloc[0]
    assert "died in the quality stage by SIGSEGV" in died["error"]
    assert died["attempt"] == 2
