"""One sweep over four hosts: the head of a Ray cluster, a node that joined it, and two boards.

The hosts are network namespaces of this machine; each has its own address, name and servers. The
cluster is the one of our own ``cluster.yaml``, started with ``ray up`` from a fifth.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from hosts import HOME, ROOT, Host, hosts
from old_runtime import python_with_tflite_runtime
from ruamel.yaml import YAML
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
NODES = ("head", "beta")
NUMBERS = ["status", "value", "delta", "flips_worse", "sqnr_db", "cosine"]
KEYS = ["model", "scheme", "bits"]
PROFILE = {
    "PATH": f"{HOME / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    "QB_CACHE_BYTES": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000",  # two stores share one memory
}
# What `ray up` asks of rsync, which many machines have not: one file goes to another host.
RSYNC = """\
#!/bin/bash -e
[ "$#" = 5 ] && [ "$1 $3" = "--rsh -avz" ]
$2 "${5%%:*}" "cat > ${5#*:} && chmod 600 ${5#*:}" < "$4"
"""


@dataclasses.dataclass(frozen=True)
class Net:
    """The hosts: ``head`` and ``beta`` are nodes of Ray, ``alpha`` and ``gamma`` are boards."""

    head: Host
    beta: Host
    alpha: Host
    desk: Host
    boards: dict[str, SshBoard]

    def qb(self, place, *arguments, timeout=60):
        return self.head.run("qb", *arguments, cwd=place.folder, timeout=timeout)

    def nodes(self):
        """Names of those that are nodes of the cluster by now."""
        told = self.head.run("qb", "devices", "--address", "auto", "--json")
        return {json.loads(line)["host"] for line in told.stdout.splitlines()}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder, shared = tmp_path_factory.mktemp("hosts"), tmp_path_factory.getbasetemp()
    names = (*NODES, "alpha", "gamma", "desk")
    with hosts(*names, folder=folder, shared=shared, profile=PROFILE) as made:
        head, beta, alpha, gamma, desk = made
        boards = {
            "alpha": alpha.board(python_with_tflite_runtime()),
            "gamma": gamma.board(sys.executable),
        }
        yield Net(head, beta, alpha, desk, boards)


@pytest.fixture(scope="module")
def cluster(net):
    """Those hosts, with the cluster of our ``cluster.yaml``.

    From the desk Ray's launcher starts the head, and from the head the other node.
    """
    file = YAML(typ="safe").load(ROOT / "cluster.yaml")
    file["provider"] |= {"head_ip": net.head.address, "worker_ips": [net.beta.address]}
    file["auth"] |= {"ssh_user": "root", "ssh_private_key": str(net.desk.key)}
    net.desk.has_file("cluster.yaml", json.dumps(file))
    net.desk.has_file("bin/rsync", RSYNC, mode=0o700)
    for host in (net.head, net.beta):
        host.let_in(net.desk)
        host.has_file(".config/quantbench/node.toml", f'[labels]\n"qb/board" = "{host.name}"\n')
        host.has_file(".ray/auth_token", "5b1d" * 16)
    done = net.desk.run("ray", "up", "--yes", "--no-config-cache", "cluster.yaml", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: launched(net.head) == len(NODES), 60)
    wait_until(lambda: net.nodes() == set(NODES), 30)
    return net


def launched(head):
    """Count the nodes that Ray's launcher is done with; cheaper than to ask the cluster."""
    told = "".join(path.read_text() for path in head.tmp.glob("ray/cluster-*.state"))
    assert "update-failed" not in told
    return told.count('"up-to-date"')


def device(name, board, **more):
    ssh = {key: value for key, value in dataclasses.asdict(board).items() if value}
    return {"name": name, "ssh": ssh, **more}


def spec(boards):
    nodes = [{"name": name, "labels": {"qb/board": name}, "threads": THREADS} for name in NODES]
    return f"{SPEC}devices: {json.dumps(nodes + [device(*named) for named in boards.items()])}\n"


def rows(place, **wanted):
    try:
        table = pd.read_parquet(place.folder / "out" / "results", columns=["cell_id", *wanted])
    except FileNotFoundError:
        return 0
    return int((table[list(wanted)] == pd.Series(wanted)).all(axis=1).sum())


def numbers(results, device):
    of_device = results[results["device"] == device]
    return of_device[KEYS + NUMBERS].sort_values(KEYS).reset_index(drop=True)


def test_a_cluster_that_ray_s_launcher_started_tells_its_hosts_and_the_words_of_a_spec(
    place, cluster
):
    done = cluster.qb(place, "devices", "--address", "auto")
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
    name = place.spec(spec(cluster.boards))
    with cluster.alpha.cut_off():
        done = cluster.qb(place, "run", name, "--out", "out", "--address", "auto")
    assert done.returncode == 2, done.stdout + done.stderr
    address = cluster.boards["alpha"].host
    assert f"\nerror: device 'alpha': board '{address}' " in done.stderr
    # The kernel says after some seconds that nobody is there, or our patience ends first.
    assert "cannot be reached" in done.stderr or "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert rows(place) == 0


@pytest.mark.nightly
def test_a_board_off_the_network_in_the_middle_comes_back_and_results_equal_the_plan(
    place, cluster
):
    name = place.spec(spec(cluster.boards))
    log = place.folder / "driver.log"
    command = ("qb", "run", name, "--out", "out", "--address", "auto")
    hold, held = (Path(cluster.boards["alpha"].folder, name) for name in ("hold", "held"))
    hold.touch()
    driver = cluster.head.popen(*command, log=log, cwd=place.folder)
    wait_until(lambda: held.exists() or driver.poll() is not None, 90)
    assert driver.poll() is None, log.read_text()
    others = {*NODES, "gamma"}
    with cluster.alpha.cut_off():
        # SSH's keepalive finds out within 20 s, and then nobody answers for 10 s.
        wait_until(lambda: "; trying again" in log.read_text(), 60)
        # The others do not wait for it.
        wait_until(lambda: all(rows(place, device=one) == 3 * len(MODELS) for one in others), 60)
        hold.unlink()
    assert driver.wait(60) == 0, log.read_text()
    held.unlink()
    results = place.results("out")
    planned = cluster.qb(place, "plan", name, "--json").stdout.splitlines()
    assert set(results["cell_id"]) == {json.loads(line)["cell_id"] for line in planned}
    assert len(results) == len(planned) == 4 * 3 * len(MODELS)
    for device_name in ("beta", "alpha", "gamma"):
        pd.testing.assert_frame_equal(numbers(results, "head"), numbers(results, device_name))
    ran = results[results["status"] == "ok"]
    assert (ran["host"] == ran["device"]).all()
    assert ran["latency_median_ns"].notna().all()
    # What ran when the network went was tried again, and cost no other device an attempt. A row
    # has the attempt of its last stage, so that it tells of this only where that was the last.
    assert set(ran.loc[ran["device"] == "alpha", "attempt"]) <= {1, 2}
    assert set(ran.loc[ran["device"] != "alpha", "attempt"]) == {1}
    for board in cluster.boards.values():
        wait_until(lambda folder=Path(board.folder): not list(folder.iterdir()))


@pytest.mark.nightly
@pytest.mark.frameworks
def test_an_int8_file_gives_on_another_host_s_tflite_runtime_what_ai_edge_litert_gives_here(
    place, net
):
    text = f"""
sweep: runtimes
models: [digits-mlp]
datasets: [digits]
schemes: [static]
bits: [w8a8]
backends: [tflite]
measure: {{latency: false}}
devices: [cpu, {json.dumps(device("alpha", net.boards["alpha"]))}]
"""
    name = place.spec(text)
    done = net.qb(place, "run", name, "--out", "out", "--pool", "inline", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    results = place.results("out").set_index(["device", "scheme"])
    assert set(results["status"]) == {"ok"}
    here, there = results.loc["cpu", "static"], results.loc["alpha", "static"]
    assert (here["host"], there["host"]) == ("head", "alpha")
    assert here["artifact_bytes"] == there["artifact_bytes"]
    assert abs(here["sqnr_db"] - there["sqnr_db"]) < 0.1
    assert abs(here["value"] - there["value"]) < 0.005
    assert there["runtime"] == "tflite-runtime 2.14.0"
    assert net.qb(place, "report", "out").returncode == 0
    report = place.folder / "out" / "report"
    beside = pd.read_parquet(report / "devices.parquet").set_index(["device", "scheme"])
    assert set(beside.index.get_level_values("device")) == {"cpu", "alpha"}
    assert set(beside.loc["alpha", "runtime"]) == {"tflite-runtime 2.14.0"}
    assert beside["host"].notna().all()
    pairs = pd.read_parquet(report / "agreement.parquet").set_index(
        ["scheme", "device", "execution", "other_device", "other_execution"]
    )
    pair = pairs.loc[("static", "cpu", "native", "alpha", "native")]
    assert pair["top1_agreement"] > 0.98
    assert pair["sqnr_db"] > 25
