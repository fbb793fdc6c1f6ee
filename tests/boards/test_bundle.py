import os
import select
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from ssh_server import wait_until

from qb_cluster.boards.agent.private_folder import AGENT, ALIVE, PrivateFolder
from qb_cluster.boards.bundle import make_bundle, shipped_files, start_command

RUNTIME = "qb_litert.runtime"
# Before each step of the bootstrap a neighbour cleans up, whose clock is a year ahead.
NEIGHBOUR = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from qb_cluster.boards.agent.private_folder import PrivateFolder
clock, within = time.time, []
time.time = lambda: clock() + 365 * 86400
def clean(step, arguments):
    if step in ("os.mkdir", "open", "fcntl.flock", "os.rename", "os.exec") and not within:
        within.append(step)
        removed = PrivateFolder(Path(sys.argv[2], "mine")).remove_dead_neighbours()
        assert not removed, f"{{removed}} before {{step}}"
        within.clear()
sys.addaudithook(clean)
"""


def test_equal_sources_give_equal_bytes():
    assert make_bundle(RUNTIME) == make_bundle(RUNTIME)


def test_it_holds_what_it_imports_and_nothing_that_boards_lack():
    with zipfile.ZipFile(BytesIO(make_bundle(RUNTIME))) as bundle:
        names = set(bundle.namelist())
        assert not any(bundle.read(name) for name in names if name.endswith("__init__.py"))
    agent = Path(shipped_files(RUNTIME)[0]).parent
    ours = {f"qb_cluster/boards/agent/{file.name}" for file in agent.glob("*.py")}
    assert ours <= names
    assert {"qb_litert/runtime.py", "qb_cluster/nodes/machine.py", "__main__.py"} <= names


def test_what_is_shipped_does_with_python_3_8():
    vermin = Path(sys.executable).parent / "vermin"
    command = [vermin, "-t=3.8-", "--no-tips", *shipped_files(RUNTIME)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_agent_that_starts_is_never_taken_for_a_dead_one(tmp_path):
    command = start_command(sys.executable, 0, str(tmp_path), silence_s=1)
    command[2] = NEIGHBOUR + command[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (left,) = tmp_path.iterdir()  # an agent of no bytes does nothing, and does not tidy up
    assert {path.name for path in left.iterdir()} == {ALIVE, AGENT}
    assert PrivateFolder(tmp_path / "mine").remove_dead_neighbours() == [left.name]


def test_a_folder_that_a_dying_agent_removed_by_half_goes_at_once(tmp_path):
    (tmp_path / "quantbench-half" / "artifacts").mkdir(parents=True)
    assert PrivateFolder(tmp_path / "mine").remove_dead_neighbours() == ["quantbench-half"]
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_falls_silent_is_taken_for_gone(folder, old_python):
    bundle = make_bundle(RUNTIME)
    command = start_command(str(old_python), len(bundle), str(folder), silence_s=0.3)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as agent:
        agent.stdin.write(bundle)
        agent.stdin.flush()
        assert b"QuantBench agent" in agent.stdout.readline()
        assert b"nothing was heard from the driver for 0.3 s" in agent.stderr.read()
    assert agent.returncode == 75


def test_a_silent_driver_whose_pipe_is_full_keeps_no_agent(folder, old_python):
    bundle = make_bundle(RUNTIME)
    command = start_command(str(old_python), len(bundle), str(folder), silence_s=0.3)
    unread, stderr = os.pipe()
    os.set_blocking(stderr, False)
    while select.select([], [stderr], [], 0)[1]:
        os.write(stderr, b"." * 4096)
    os.set_blocking(stderr, True)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    ) as agent:
        try:
            agent.stdin.write(bundle)
            agent.stdin.flush()
            assert b"QuantBench agent" in agent.stdout.readline()
            wait_until(lambda: not list(folder.iterdir()))
            assert agent.wait(10) == 75
        finally:
            agent.kill()
            os.close(unread)
            os.close(stderr)


def test_an_unknown_runtime_is_told_before_anything_is_sent():
    with pytest.raises(ModuleNotFoundError, match="there is no module 'nowhere'"):
        make_bundle("nowhere")
