import sys
from types import ModuleType, SimpleNamespace

import pytest

from qb_cluster.nodes.accelerators import (
    Accelerator,
    Clocks,
    accelerators,
    clocks,
    foreign_processes,
    unseen_driver,
    visible,
)


class FakeNVML(ModuleType):
    """What nvidia-ml-py does on a machine with three GPUs, one of them lost."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    LOST = 1

    def __init__(self):
        super().__init__("pynvml")
        self.driver = True
        self.open = 0

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"570.86"

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index == self.LOST or index > 2:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return self.nvmlDeviceGetHandleByIndex(int(uuid[-1]))

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return f"GPU-abc{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(total=85 * 10**9)

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return 9, 0

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=70), SimpleNamespace(pid=7)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):  # noqa: N802
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    yield fake
    assert fake.open == 0


def gpu(index):
    name = "NVIDIA H100 80GB HBM3"
    return Accelerator(index, name, 85 * 10**9, "570.86", "9.0", f"GPU-abc{index}")


def test_this_machine_answers_whether_or_not_it_has_a_gpu():
    for found in accelerators():
        assert found.memory_bytes > 0
    assert foreign_processes(10_000, []) == []
    assert clocks("GPU-no-such") is None


def test_a_lost_gpu_is_left_out_and_the_others_keep_their_numbers(nvml):
    assert accelerators() == [gpu(0), gpu(2)]


def test_processes_besides_our_own_are_foreign(nvml):
    assert foreign_processes(0, []) == [7, 70]
    assert foreign_processes("GPU-abc2", [7, 8]) == [70]
    assert foreign_processes(FakeNVML.LOST, []) == []


def test_clocks_are_in_mhz_and_unknown_for_a_lost_gpu(nvml):
    assert clocks(0) == Clocks(sm_mhz=1980, memory_mhz=2619)
    assert clocks(FakeNVML.LOST) is None


def test_without_a_driver_or_the_module_there_are_no_gpus_quietly(nvml, monkeypatch, tmp_path):
    nvml.driver = False
    assert accelerators() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert accelerators() == []
    assert foreign_processes(0, []) == []
    assert clocks(0) is None
    assert unseen_driver(tmp_path / "none") is None


def test_a_driver_that_cannot_be_asked_is_said(nvml, monkeypatch, tmp_path):
    assert unseen_driver(tmp_path) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "install nvidia-ml-py" in unseen_driver(tmp_path)


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 2]),
        ("", []),
        ("-1", []),
        ("2", [2]),
        ("2, 0", [2, 0]),
        ("GPU-abc2", [2]),
        ("GPU-abc", []),
        ("0,1,2", [0]),
    ],
)
def test_gpus_that_cuda_does_not_show_are_left_out(setting, indices):
    assert [one.index for one in visible([gpu(0), gpu(2)], setting)] == indices
