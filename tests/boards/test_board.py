"""The agent as a process of this machine, in an environment without any of ours."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ssh_server import wait_until

from qb_cluster.boards.board import Board
from qb_cluster.contracts import Artifact, Latency
from qb_cluster.errors import (
    BoardCrashedError,
    BoardError,
    BoardLostError,
    CellError,
    OutOfMemoryError,
    UnsupportedError,
)
from qb_cluster.evaluation import latency
from qb_litert.runtime import TFLiteExecutable

RUNTIME = "qb_litert.runtime"
QUICK = Latency(warmup_s=0.01, min_runs=10, min_s=0.02)
LONG = Latency(warmup_s=0.01, min_runs=10, min_s=30)

pytestmark = pytest.mark.frameworks


@pytest.fixture
def connect(folder, old_python):
    boards = []

    def connect_as(owner="run 1", who="ann"):
        boards.append(Board.connect(old_python, RUNTIME, owner, who))
        return boards[-1]

    yield connect_as
    for board in boards:
        board.close()


def test_it_says_what_the_board_is(connect, folder):
    facts = connect().facts
    assert (facts["runtime"], facts["runtime_version"]) == ("tflite-runtime", "2.14.0")
    assert facts["numpy"] < "2"
    assert facts["machine"]["cores"] == os.cpu_count()
    assert facts["free_memory_bytes"] > 0


def test_the_same_runtime_gives_the_same_bits_there_and_here(folder, artifacts, inputs):
    with Board.connect(Path(sys.executable), RUNTIME, "run 1", "ann") as board:
        assert board.facts["runtime"] == "ai-edge-litert"
        for artifact in artifacts:
            here = TFLiteExecutable(artifact.data, threads=1)(inputs)["output"]
            there = board.open(artifact, threads=1)(inputs)["output"]
            assert there.dtype == np.float32
            np.testing.assert_array_equal(there, here)


def test_outputs_of_the_other_runtime_there_are_those_of_ours_here(connect, artifacts, inputs):
    """An int8 file's outputs are multiples of a step: a few fall on the other side of a half."""
    board = connect()
    for artifact, tolerance in zip(artifacts, (1e-5, 0.0056), strict=True):
        here = TFLiteExecutable(artifact.data, threads=1)(inputs)["output"]
        there = board.open(artifact, threads=1)(inputs)["output"]
        np.testing.assert_allclose(there, here, rtol=0, atol=tolerance)
        assert np.mean(np.abs(there - here) > 1e-5) < 0.02


def test_an_artifact_travels_once(connect, artifacts, inputs, folder):
    board = connect()
    first = board.open(artifacts[1], threads=1)
    written = [
        path.stat().st_mtime_ns for path in folder.glob("*/????????????????????????????????")
    ]
    second = board.open(artifacts[1], threads=2)
    again = [path.stat().st_mtime_ns for path in folder.glob("*/????????????????????????????????")]
    assert written == again
    assert len(written) == 1
    np.testing.assert_array_equal(first(inputs)["output"], second(inputs)["output"])


def test_it_times_by_the_same_protocol_as_here(connect, artifacts, inputs):
    example = {"input": inputs["input"][:1]}
    timing = connect().time(*artifacts, example, QUICK, threads=1, cores=[0])
    runs = [TFLiteExecutable(artifact.data, threads=1) for artifact in artifacts]
    here = latency.measure(lambda: runs[0](example), lambda: runs[1](example), QUICK)
    order = [(block.block, block.position, block.arm) for block in timing.result.blocks]
    assert order == [(block.block, block.position, block.arm) for block in here.blocks]
    assert len(timing.result.samples("quantized")) >= QUICK.min_runs
    assert timing.result.samples("baseline").dtype == np.int64
    assert latency.speedup(timing.result, 0.95).ratio > 0
    assert timing.is_pinned
    assert timing.niceness == os.getpriority(os.PRIO_PROCESS, 0)
    assert timing.first_inference_ns > 0
    assert timing.foreign_cores >= 0
    assert not timing.result.capped


def test_what_is_no_model_and_what_does_not_fit_is_refused_and_the_board_goes_on(
    connect, artifacts, inputs
):
    board = connect()
    with pytest.raises(ValueError, match="no whole TFLite model"):
        board.open(replace(artifacts[1], data=artifacts[1].data[:900]), threads=1)
    executable = board.open(artifacts[1], threads=1)
    with pytest.raises(ValueError, match="Dimension mismatch"):
        executable({"input": inputs["input"][:, :3]})
    with pytest.raises(ValueError, match="holds Python objects"):
        executable({"input": np.array([[None]])})
    assert executable(inputs)["output"].shape == (64, 4)


def test_what_the_runtime_there_gets_wrong_is_unsupported(connect, artifacts):
    from qb_cluster.contracts import Bits, Quantization, Scheme
    from qb_tflite import TFLiteBackend

    dynamic = Quantization(Scheme("dynamic", "dynamic"), Bits(8, 8), "native")
    artifact = TFLiteBackend().quantize(None, artifacts[0], dynamic, None)
    with pytest.raises(UnsupportedError, match="known to return garbage"):
        connect().open(artifact, threads=1)


def test_an_artifact_larger_than_the_memory_is_refused_before_it_is_sent(connect):
    with pytest.raises(OutOfMemoryError, match="bytes of memory are free"):
        connect()._ask("has", digest="0" * 32, size=1 << 50)


def test_a_full_disk_drops_old_artifacts_and_then_refuses(tmp_path, monkeypatch, old_python):
    if os.geteuid() != 0:
        pytest.skip("a small disk takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    monkeypatch.setenv("TMPDIR", str(disk))
    try:
        with Board.connect(old_python, RUNTIME, "run 1", "ann") as board:
            noise = np.random.default_rng(0)
            for size in (100_000, 110_000, 120_000, 130_000):
                with pytest.raises(ValueError, match="no whole TFLite model"):
                    board.open(Artifact(noise.bytes(size), "tflite", None), threads=1)
            with pytest.raises(CellError, match=r"has [\d,]+ bytes free; free some"):
                board.open(Artifact(noise.bytes(500_000), "tflite", None), threads=1)
        assert not list(disk.iterdir())
        (disk / "full").write_bytes(noise.bytes(380_000))
        with pytest.raises(BoardError, match=rf"cannot be kept in {disk} .*No space left"):
            Board.connect(old_python, RUNTIME, "run 1", "ann")
        assert [path.name for path in disk.iterdir()] == ["full"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_second_who_wants_a_board_is_told_who_has_it(connect, folder):
    first, second = connect("run 1", "ann on desk"), connect("run 2", "bob")
    assert first.lock() is None
    assert first.lock() is None
    assert second.lock().startswith("ann on desk since 20")
    first.close()
    assert second.lock() is None


def test_a_run_takes_the_board_from_its_own_former_agent(connect):
    former, latter = connect(), connect()
    assert former.lock() is None
    assert latter.lock() is None
    with pytest.raises(BoardLostError, match="ended by SIGTERM"):
        former.lock()
    with pytest.raises(BoardLostError, match="connect again"):
        former.lock()


def test_a_driver_that_is_killed_leaves_nothing_on_the_board(folder, old_python):
    script = f"""
from pathlib import Path
from qb_cluster.boards.board import Board
board = Board.connect(Path({str(old_python)!r}), {RUNTIME!r}, "run 1", "ann")
board.lock()
print("ready", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout.readline() == "ready\n"
        assert {path.name.partition("-")[0] for path in folder.iterdir()} == {
            "quantbench", "quantbench.lock",
        }  # fmt: skip
        driver.kill()
    wait_until(lambda: not list(folder.iterdir()))


def test_what_a_killed_agent_left_goes_when_the_next_one_starts(connect, folder):
    killed, bystander = connect(), connect()
    assert killed.lock() is None
    os.kill(killed.facts["pid"], signal.SIGKILL)
    with pytest.raises(BoardCrashedError, match="SIGKILL; perhaps its memory was not enough"):
        killed.lock()
    assert len(list(folder.glob("quantbench-*"))) == 2
    following = connect("run 2")
    assert len(list(folder.glob("quantbench-*"))) == 2
    assert following.lock() is None
    assert bystander.lock().startswith("ann since")


def test_an_agent_that_dies_by_a_fault_is_a_crash(connect):
    board = connect()
    os.kill(board.facts["pid"], signal.SIGSEGV)
    with pytest.raises(BoardCrashedError, match="died in the middle of 'lock' by SIGSEGV"):
        board.lock()
    assert connect().lock() is None


def test_an_agent_that_is_ended_in_the_middle_of_a_run_is_lost(connect, artifacts, inputs):
    board = connect()
    example = {"input": inputs["input"][:1]}
    timer = threading.Timer(0.5, os.kill, (board.facts["pid"], signal.SIGTERM))
    timer.start()
    with pytest.raises(BoardLostError, match=r"in the middle of 'time': .* ended by SIGTERM"):
        board.time(*artifacts, example, LONG, threads=1)
    timer.join()


def test_a_python_that_is_none_is_told():
    with pytest.raises(BoardError, match="cannot be started"):
        Board.connect(Path("/nowhere/python"), RUNTIME, "run 1", "ann")
    with pytest.raises(BoardError, match="ended with status 1 and wrote nothing; is it a Python"):
        Board.connect(Path("/bin/false"), RUNTIME, "run 1", "ann")


@pytest.mark.parametrize("way", ["kill -TERM $$", "kill -KILL $$", "exit 75"])
def test_an_agent_that_is_ended_while_it_starts_is_lost(tmp_path, way):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho quantbench: ended >&2\n{way}\n")
    fake.chmod(0o755)
    with pytest.raises(BoardLostError, match="while the agent started"):
        Board.connect(fake, RUNTIME, "run 1", "ann")


def test_a_link_in_the_place_of_the_lock_is_told(connect, folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = folder / "quantbench.lock"
    link.symlink_to(victim)
    with pytest.raises(BoardError, match=rf"{link} cannot be locked \(it is a link"):
        connect().lock()
    assert victim.read_text() == "precious"
    link.unlink()


def test_what_is_not_installed_there_is_told(folder, bare_python, old_python):
    python, packages = bare_python
    with pytest.raises(BoardError, match=r"has no NumPy .* -m pip install"):
        Board.connect(python, RUNTIME, "run 1", "ann")
    for package in old_python.parents[1].glob("lib/python3*/site-packages/numpy*"):
        (packages / package.name).symlink_to(package)
    with pytest.raises(BoardError, match=r"has no runtime that can be loaded .*tflite"):
        Board.connect(python, RUNTIME, "run 1", "ann")
