"""One sweep over three hosts: the head of a Ray cluster, a node that joined it, and a board.

The hosts are network namespaces of this machine; each has its own address, name and servers.
"""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hosts import Host, hosts
from old_runtime import python_with_tflite_runtime
from ssh_server import wait_until

from qb_cluster.contracts import SshBoard

pytestmark = [pytest.mark.hosts, pytest.mark.ray]

MODELS = [{"name": "stranger:centroids", "label": f"m{n}", "options": {"scale": n}}
          for n in range(1, 5)]  # fmt: skip
THREADS = len(os.sched_getaffinity(0))  # all of them, so that a node starts one worker
SPEC = f"""
sweep: hosts
models: {json.dumps(MODELS)}
datasets: [stranger:blobs]
schemes: [weight_only]
bits: [w8, w2]
backends: ["stranger:BoardBackend"]
measure: {{latency: {{warmup_s: 0.05, min_runs: 10, min_s: 0.15}}}}
"""
NUMBERS = ["status", "value", "delta", "flips_worse", "sqnr_db", "cosine"]
KEYS = ["model", "scheme", "bits"]
ENV = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5b1d" * 16,
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Three hosts: ``head`` and beta are nodes of Ray, ``alpha`` is the board."""

    head: Host
    alpha: Host
    address: str
    board: SshBoard

    def qb(self, place, *arguments):
        return self.head.run("qb", *arguments, cwd=place.folder)


@pytest.fixture(scope="module")
def ray_folder():
    # Ray's sockets lie deep in it, and their paths are 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="qbh", dir="/tmp")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(ray_folder, tmp_path_factory):
    """Hosts that were started as docs/clusters.md says."""
    folder = tmp_path_factory.mktemp("hosts")
    for name in ("board", "sshd"):
        (folder / name).mkdir()
    with hosts("head", "beta", "alpha", env=ENV) as (head, beta, alpha):
        address = f"{head.address}:6379"
        start_ray(head, "--head --port=6379 --include-dashboard=false", folder, ray_folder)
        start_ray(beta, f"--address={address}", folder, ray_folder)
        sshd = alpha.serve_ssh(folder / "sshd")
        board = sshd.board(folder / "board", python_with_tflite_runtime())
        yield Cluster(head, alpha, address, board)


def start_ray(host, role, folder, ray_folder):
    config = folder / f"{host.name}.toml"
    config.write_text(f'[labels]\n"qb/board" = "{host.name}"\n')
    here = f"--node-ip-address={host.address} --temp-dir={ray_folder}"
    small = "--object-store-memory=80000000"
    line = f"node=$(qb node) && ray start {role} {here} {small} $node"
    done = host.run("sh", "-c", line, env={"QB_NODE_CONFIG": str(config)})
    assert done.returncode == 0, done.stdout + done.stderr


def spec(board):
    ssh = {key: value for key, value in dataclasses.asdict(board).items() if value}
    nodes = [
        {"name": name, "labels": {"qb/board": name}, "threads": THREADS}
        for name in ("head", "beta")
    ]
    return f"{SPEC}devices: {json.dumps([*nodes, {'name': 'alpha', 'ssh': ssh}])}\n"


def rows(place, **wanted):
    try:
        table = pd.read_parquet(place.folder / "out" / "results", columns=["cell_id", *wanted])
    except FileNotFoundError:
        return 0
    return int((table[list(wanted)] == pd.Series(wanted)).all(axis=1).sum())


def numbers(results, device):
    of_device = results[results["device"] == device]
    return of_device[KEYS + NUMBERS].sort_values(KEYS).reset_index(drop=True)


def test_a_cluster_of_several_hosts_tells_their_names_and_the_words_of_a_spec(place, cluster):
    done = cluster.qb(place, "devices", "--address", cluster.address)
    assert done.returncode == 0, done.stderr
    table, _, devices = done.stdout.partition("\n\n")
    assert [line.split()[:3] for line in table.splitlines()] == [
        ["host", "cores", "board"],
        ["beta", str(THREADS), "beta"],
        ["head", str(THREADS), "head"],
    ]
    entries = devices.splitlines()
    assert entries[0] == "devices:"
    for entry, name in zip(entries[1:], ("beta", "head"), strict=True):
        assert entry.startswith(f'  - {{name: "{name}", labels: {{qb/board: "{name}", ')
        assert entry.endswith(f"threads: {THREADS}}}  # {name}")


def test_a_board_that_is_off_the_network_is_told_before_anything_runs(place, cluster):
    name = place.spec(spec(cluster.board))
    with cluster.alpha.cut_off():
        done = cluster.qb(place, "run", name, "--out", "out", "--address", cluster.address)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: device 'alpha': board '{cluster.board.host}' ")
    # The kernel says after some seconds that nobody is there, or our patience ends first.
    assert "cannot be reached" in done.stderr or "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert rows(place) == 0


@pytest.mark.timeout(150)
def test_a_board_off_the_network_in_the_middle_comes_back_and_results_equal_the_plan(
    place, cluster
):
    name = place.spec(spec(cluster.board))
    log = place.folder / "driver.log"
    command = ("qb", "run", name, "--out", "out", "--address", cluster.address)
    driver = cluster.head.popen(*command, log=log, cwd=place.folder)
    wait_until(lambda: rows(place, host="alpha") >= 1, 60)
    with cluster.alpha.cut_off():
        # SSH's keepalive finds out within 20 s, and then nobody answers for 10 s.
        wait_until(lambda: "; trying again" in log.read_text(), 60)
        assert rows(place, host="alpha") < 2 * len(MODELS)
        assert rows(place, device="head") == rows(place, device="beta") == 3 * len(MODELS)
    assert driver.wait(60) == 0, log.read_text()
    results = place.results("out")
    planned = cluster.qb(place, "plan", name, "--json").stdout.splitlines()
    assert set(results["cell_id"]) == {json.loads(line)["cell_id"] for line in planned}
    assert len(results) == len(planned) == 3 * 3 * len(MODELS)
    for device in ("beta", "alpha"):
        pd.testing.assert_frame_equal(numbers(results, "head"), numbers(results, device))
    # What ran when the network went was tried again. (What is not applied needs no board.)
    ran = results[results["status"] == "ok"]
    assert (ran["host"] == ran["device"]).all()
    assert ran["latency_median_ns"].notna().all()
    assert set(ran.loc[ran["device"] == "alpha", "attempt"]) == {1, 2}
    wait_until(lambda: not list(Path(cluster.board.folder).iterdir()))
