"""A sweep over a cluster whose nodes die and join, and one that no node can serve."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import psutil
import pytest
from ssh_server import wait_until

pytestmark = [
    pytest.mark.ray,
    # JAX, loaded by other tests, fears for children that do not exec; those of Ray do.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]

SPEC = """
sweep: cluster
models:
  - stranger:centroids
  - {name: "stranger:centroids", label: big, options: {scale: 10}}
datasets: [stranger:blobs]
schemes: [weight_only, static]
bits: [w3, w4, w5, w6, w7, w8, w9, w10, w3a8, w4a8, w5a8, w6a8, w7a8, w8a8, w9a8]
backends: [stranger:NumpyBackend]
devices: [{name: board, labels: {qb/board: sim}}]
measure: {latency: false}
"""
SLOW = '[{name: "stranger:NumpyBackend", options: {pause_s: 0.5}}]'
SLOWER = SLOW.replace("0.5", "1.5")
BUSY = SLOW.replace("0.5", "30")  # for minutes
QUALITY = ["cell_id", "status", "value", "delta", "flips_worse", "sqnr_db", "cosine"]


@pytest.fixture(scope="module")
def cluster():
    """A head that is no board; boards are added by the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "labels": {"qb/board": "none"}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


def rows(place, out):
    try:
        return len(pd.read_parquet(place.folder / out / "results", columns=["cell_id"]))
    except FileNotFoundError:
        return 0


def wait_for_rows(place, out, count):
    wait_until(lambda: rows(place, out) >= count, 150)  # a busy machine starts workers for long


def test_a_device_that_no_node_has_is_refused_before_anything_runs(place, cluster):
    spec = place.spec(SPEC.replace("sim", "rpi5"))
    done = place.qb("run", spec, "--out", "out", "--address", cluster.address)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "device 'board': no node has label qb/board=rpi5; known: qb/board=none" in done.stderr
    assert rows(place, "out") == 0


def test_a_cluster_tells_what_devices_it_has(place, cluster):
    done = place.qb("devices", "--address", cluster.address)
    assert done.returncode == 0, done.stderr
    table, _, spec = done.stdout.partition("\n\n")
    assert table.splitlines()[1].split()[1:3] == ["1", "none"]
    assert spec.startswith("devices:\n  - {")


@pytest.mark.parametrize("pool", ["inline", "ray"])
def test_what_qb_devices_prints_of_this_machine_runs_on_it(place, pool):
    told = place.qb("devices")
    assert told.returncode == 0, told.stderr
    devices = told.stdout.partition("\n\n")[2]
    text = re.sub(r"bits: .*", "bits: [w8]", SPEC.replace(", static", ""))
    text = text.replace("devices: [{name: board, labels: {qb/board: sim}}]\n", devices)
    done = place.qb("run", place.spec(text), "--out", "out", "--pool", pool)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(place.results("out")["status"]) == {"ok"}
    wrong = place.spec(re.sub('name: "[^"]+"(.*)labels: {', r"name: x\1labels: {rack: r9, ", text))
    done = place.qb("run", wrong, "--out", "wrong", "--pool", pool)
    assert done.returncode == 2
    assert "device 'x': no node has label rack=r9" in done.stderr


@pytest.fixture
def agent_with_key(tmp_path, sshd):
    """An agent of SSH that has the user's key; gives its socket."""
    key, socket = tmp_path / "key", tmp_path / "agent"
    shutil.copy(sshd.folder / "user_key", key)
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        wait_until(socket.exists)
        env = os.environ | {"SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", key], env=env, check=True)
        key.unlink()
        yield str(socket)
        agent.terminate()


def test_the_keys_of_whoever_starts_the_sweep_open_its_boards(place, cluster, sshd, agent_with_key):
    """Not those of whoever started Ray; and files are found from where the sweep is started."""
    shutil.copy(sshd.known_hosts, place.folder / "known_hosts")
    (place.folder / "board").mkdir()
    board = {
        "host": sshd.address,
        "port": sshd.port,
        "user": "root",
        "python": sys.executable,
        "folder": str(place.folder / "board"),
        "known_hosts": "known_hosts",
    }
    text = SPEC.replace("NumpyBackend", "BoardBackend").replace(", static", "")
    text = re.sub(r"bits: .*", "bits: [w8]", text)
    text = text.replace("labels: {qb/board: sim}", f"ssh: {json.dumps(board)}")
    env = {"SSH_AUTH_SOCK": agent_with_key}
    run = "run", place.spec(text), "--out", "out", "--address", cluster.address
    done = place.qb(*run, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(place.results("out")["runtime"]) == {f"numpy {np.__version__}"}


def test_a_wrong_address_is_a_clear_error(place):
    done = place.qb("run", place.spec(SPEC), "--out", "out", "--address", "127.0.0.1:9")
    assert done.returncode == 2
    assert "\nerror: " in done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


SHIPPED = """
from pathlib import Path

import numpy as np
from stranger import Linear


def from_file():
    assert not Path("out").exists(), "the run folder came along"
    return Linear(np.loadtxt("weights/centres.txt"))
"""


def test_a_node_runs_the_code_of_the_driver_s_folder_where_that_is_sent(place, cluster):
    """Plug-ins write their log beside themselves: nothing of them runs in the driver's folder."""
    (place.folder / "shipped.py").write_text(SHIPPED)
    (place.folder / "weights").mkdir()
    weights = np.random.default_rng(0).standard_normal((4, 8))
    np.savetxt(place.folder / "weights" / "centres.txt", weights)
    text = SPEC.replace("sim", "none").replace("stranger:centroids\n", "shipped:from_file\n")
    spec = place.spec(re.sub(r"bits: .*", "bits: [w8, w4a8]", text))
    run = "run", spec, "--address", cluster.address
    done = place.qb(*run, "--out", "out", "--ship-code")
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out")
    assert set(results["status"]) == {"ok"}
    assert set(results["model"]) == {"shipped:from_file", "big"}
    assert place.log() == []


def test_nodes_die_and_join_and_the_table_is_the_undisturbed_one(place, cluster):
    plain = SPEC.replace("devices: [{name: board, labels: {qb/board: sim}}]\n", "")
    reference = place.qb("run", place.spec(plain, "plain.yaml"), "--out", "plain", "--pool=inline")
    assert reference.returncode == 0, reference.stderr
    first = cluster.add_node(num_cpus=2, labels={"qb/board": "sim"})
    place.hold(20)
    driver = place.popen(
        "run",
        place.spec(SPEC.replace("[stranger:NumpyBackend]", SLOW)),
        *("--out", "out", "--address", cluster.address),
    )
    wait_for_rows(place, "out", 5)
    raylet = psutil.Process(first.all_processes["raylet"][0].process.pid)
    raylet.send_signal(signal.SIGKILL)
    place.go()
    cluster.add_node(num_cpus=2, labels={"qb/board": "sim"})
    assert driver.wait(timeout=180) == 0
    # Where a cell ran changes its id, and none of its numbers.
    numbers = [name for name in QUALITY if name != "cell_id"]
    keys = ["model", "scheme", "bits"]
    here, there = (
        place.results(out)[keys + numbers].sort_values(keys).reset_index(drop=True)
        for out in ("plain", "out")
    )
    pd.testing.assert_frame_equal(here, there)
    assert set(place.results("out")["device"]) == {"board"}


def test_a_worker_with_a_gpu_sees_it_alone_and_one_without_sees_none(place, cluster):
    # Ray takes the word of whoever starts a node: no GPU is touched here.
    node = cluster.add_node(num_cpus=3, num_gpus=2, labels={"qb/accelerator": "sim"})
    devices = "[cpu, {name: gpu, accelerator: sim}]"
    models = [
        {"name": "stranger:centroids", "label": f"m{scale}", "options": {"scale": scale}}
        for scale in (1, 2)
    ]
    text = f"""
sweep: gpus
models: {json.dumps(models)}
datasets: ["stranger:blobs"]
schemes: [weight_only]
bits: [w8]
execution: simulated  # a native cell's twin is simulated on the CPU, by any worker
backends:
  - {{name: "stranger:GpuBackend", label: gpu, options: {{workers: 2}}}}
  - "stranger:NumpyBackend"
devices: {devices}
measure: {{latency: false}}
"""
    done = place.qb("run", place.spec(text), "--out", "out", "--address", cluster.address)
    cluster.remove_node(node)
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out").set_index(["backend", "device"]).sort_index()
    on_gpu = results.loc[[("gpu", "gpu")]]
    assert set(on_gpu["status"]) == {"ok"}
    other = results.loc[[("stranger:NumpyBackend", "gpu")]]
    assert set(other["error"]) == {"stranger:NumpyBackend computes on no GPU"}
    sees = {word for word in place.log() if "sees" in word}
    assert sees == {"cpu sees ''", "gpu sees '0'", "gpu sees '1'"}


def test_a_node_with_a_runtime_alone_runs_what_another_has_made(place, cluster):
    nodes = [
        cluster.add_node(num_cpus=1, labels={label: value}, env_vars={"STRANGER_ROLE": value})
        for label, value in (("role", "converter"), ("qb/board", "runtime"))
    ]
    text = """
sweep: apart
models: ["stranger:centroids"]
datasets: ["stranger:blobs"]
schemes: [weight_only]
bits: [w2, w4, w8]
backends: ["stranger:ApartBackend"]
devices:
  - {name: runtime, labels: {qb/board: runtime}, prepared_on: {role: converter}}
measure: {latency: {warmup_s: 0.01, min_runs: 10, min_s: 0.02}}
"""
    done = place.qb("run", place.spec(text), "--out", "out", "--address", cluster.address)
    for node in nodes:
        cluster.remove_node(node)
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out")
    assert results.set_index("bits")["status"].to_dict() == {
        "f32": "ok", "w2": "not_applied", "w4": "unsupported", "w8": "ok",
    }  # fmt: skip
    assert results.loc[results["status"] == "ok", "speedup"].notna().all()
    # What its kernels are held against is simulated where it is made, and found by the other.
    assert results.loc[results["bits"] == "w8", "reference_sqnr_db"].notna().all()
    made = sorted(line for line in place.log() if " made on " in line)
    # Each once, but what a simulation starts from: it may be another backend's.
    names = "float", "float", "native w2", "native w8", "simulated w8"
    assert made == [f"{name} made on converter" for name in names]
    runs = {line for line in place.log() if line.startswith("run on ")}
    assert runs == {"run on converter", "run on runtime"}


@pytest.mark.nightly
def test_a_sweep_that_waits_for_a_node_gives_back_those_that_it_is_done_with(place, cluster):
    nodes = {
        name: cluster.add_node(num_cpus=1, labels={"qb/board": name}, resources={"qb_lock": 1})
        for name in ("n1", "n2")
    }

    def start(out, *names, bits="[w4]", backend=SLOWER):
        entries = ", ".join(f"{{name: {name}, labels: {{qb/board: {name}}}}}" for name in names)
        text = SPEC.replace("[{name: board, labels: {qb/board: sim}}]", f"[{entries}]")
        text = re.sub(r"bits: .*", f"bits: {bits}", text.replace(", static", ""))
        spec = place.spec(text.replace("[stranger:NumpyBackend]", backend), f"{out}.yaml")
        return place.popen("run", spec, "--out", out, "--address", cluster.address)

    bits = str([f"w{n}" for n in range(3, 17)]).replace("'", "")
    long = start("long", "n2", bits=bits, backend=BUSY)
    wait_for_rows(place, "long", 1)
    start("both", "n1", "n2")
    wait_for_rows(place, "both", 1)
    short = start("short", "n1")
    assert short.wait(120) == 0
    assert long.poll() is None, "what held the other node was over before"
    place.end()
    for node in nodes.values():
        cluster.remove_node(node)


@pytest.mark.nightly
def test_the_second_sweep_on_a_node_waits_and_says_so(place, cluster):
    board = {"qb/board": "shared"}
    node = cluster.add_node(num_cpus=2, labels=board, resources={"qb_lock": 1})
    run = "run", place.spec(SPEC.replace("sim", "shared")), "--address", cluster.address, "--out"
    place.hold()
    first = place.popen(*run, "out", stderr=subprocess.PIPE)
    wait_for_rows(place, "out", 1)
    second = place.popen(*run, "other", stderr=subprocess.PIPE)
    told = next(line for line in second.stderr if "another sweep" in line)
    assert re.search("node '.+' is not free: another sweep uses it, or it is slow to start", told)
    assert rows(place, "other") == 0
    place.interrupt(first)
    place.hold(20)  # enough for what the first one has in hand
    first.communicate(timeout=60)
    assert first.returncode == 130
    wait_for_rows(place, "other", 1)
    place.interrupt(second)
    place.go()
    second.communicate(timeout=60)
    assert second.returncode == 130
    cluster.remove_node(node)
