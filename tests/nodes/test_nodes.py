import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from qb_cluster.nodes import cores, environment, self_description
from qb_cluster.nodes.cores import available_cores, cpu_quota, pinned
from qb_cluster.nodes.load import Load

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads"
)


def test_an_environment_is_json_and_its_id_follows_its_content():
    description = environment.describe(["numpy", "no-such-package"])
    assert json.loads(json.dumps(description)) == description
    assert description["libraries"]["no-such-package"] is None
    changed = description | {"cpu_model": "another"}
    assert environment.env_id(description) == environment.env_id(dict(description))
    assert environment.env_id(description) != environment.env_id(changed)


@needs_affinity
def test_pinning_reaches_threads_that_exist_already_and_is_undone():
    before = available_cores()
    seen = []
    go, done = threading.Event(), threading.Event()

    def look():
        go.wait()
        seen.append(os.sched_getaffinity(0))
        done.set()

    thread = threading.Thread(target=look)
    thread.start()
    with pinned(before[:1]) as worked:
        go.set()
        done.wait()
        assert worked
        assert seen == [{before[0]}]
    thread.join()
    assert available_cores() == before


@needs_affinity
def test_cores_that_do_not_exist_leave_the_process_unpinned():
    before = available_cores()
    with pinned([10_000]) as worked:
        assert not worked
    assert available_cores() == before


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "400000\n"}, None),
    ],
)
def test_the_quota_of_a_container_is_read_of_both_versions_of_control_groups(
    tmp_path, files, cores
):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores


def test_a_node_offers_no_more_cores_than_its_quota_and_says_that_this_is_noise(monkeypatch):
    monkeypatch.setattr(cores, "available_cores", lambda: tuple(range(8)))
    for quota, offered in ((2.5, 2), (0.5, 1), (8.0, 8), (None, 8)):
        monkeypatch.setattr(cores, "cpu_quota", lambda quota=quota: quota)
        node = self_description.describe_this_node()
        assert node.cores == offered
        assert f"--num-cpus={offered}" in node.ray_arguments()
        told = [warning for warning in node.warnings if "static CPU manager" in warning]
        assert len(told) == (offered < 8)


def test_a_busy_neighbour_is_seen_and_our_own_work_is_not():
    first = Load.now()
    neighbour = subprocess.run(
        [sys.executable, "-c", "import time; t = time.time()\nwhile time.time() < t + 0.6: pass"],
        check=True,
    )
    assert neighbour.returncode == 0
    assert Load.now().foreign_cores(first) > 0.4


def test_a_fingerprint_names_the_hardware_and_neither_its_host_nor_its_libraries(monkeypatch):
    def fingerprint(**changes):
        hardware = environment.describe(()) | changes
        with monkeypatch.context() as patch:
            patch.setattr(environment, "describe", lambda _: hardware)
            return environment.fingerprint.__wrapped__()

    here = environment.fingerprint()
    assert fingerprint() == here
    assert fingerprint(host="another", python="4", libraries={"numpy": "9"}, os="x") == here
    changes = {"arch": "riscv", "cpu_model": "x", "cpu_features": [], "cores": 1000}
    others = {fingerprint(**{key: value}) for key, value in changes.items()}
    others.add(fingerprint(memory_bytes=2**60))
    assert len(others - {here}) == 5


class NVML:
    """What nvidia-ml-py does on a machine with two GPUs that differ in their UUIDs alone."""

    NVMLError = RuntimeError

    def __init__(self, name="NVIDIA L4", memory=24 * 10**9, driver="570.86", maker="GPU"):
        self.nvmlInit = self.nvmlShutdown = lambda: None
        self.nvmlSystemGetDriverVersion = lambda: driver
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetName = lambda _: name
        self.nvmlDeviceGetUUID = lambda index: f"{maker}-{index}"
        self.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(total=memory)
        self.nvmlDeviceGetCudaComputeCapability = lambda _: (8, 9)


def with_gpus(monkeypatch, ask, *, shown="0", **gpus):
    """Ask about a machine with GPUs, of which CUDA shows some; what was known is not kept."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", NVML(**gpus))
        patch.setenv("CUDA_VISIBLE_DEVICES", shown)
        patch.setattr(environment, "own_gpu", environment.own_gpu.__wrapped__)
        return ask()


def test_a_process_s_own_gpu_is_the_first_that_cuda_shows_it(monkeypatch):
    def own(shown):
        return with_gpus(monkeypatch, environment.own_gpu.__wrapped__, shown=shown)

    assert own("1") == {
        "index": 1,
        "name": "NVIDIA L4",
        "memory_bytes": 24 * 10**9,
        "driver": "570.86",
        "compute_capability": "8.9",
        "uuid": "GPU-1",
    }
    assert own("GPU-0,1")["uuid"] == "GPU-0"
    assert own("") is None


def test_a_fingerprint_with_a_gpu_names_its_kind_and_not_which_one_it_is(monkeypatch):
    def fingerprint(gpus=1, **changes):
        ask = environment.fingerprint.__wrapped__
        return with_gpus(monkeypatch, lambda: ask(gpus), **changes)

    here = fingerprint()
    assert fingerprint(shown="1") == fingerprint(maker="another GPU") == here
    others = {
        fingerprint(name="NVIDIA L40"),
        fingerprint(memory=48 * 10**9),
        fingerprint(driver="580.1"),
        fingerprint(gpus=0),
        fingerprint(shown=""),
    }
    assert len(others - {here}) == 4, "without a GPU it is the same whether or not one is asked for"
    assert fingerprint(gpus=0) == environment.fingerprint()
