import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from qb_cluster.boards.bundle import make_bundle, shipped_files, start_command

RUNTIME = "qb_litert.runtime"


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


def test_an_unknown_runtime_is_told_before_anything_is_sent():
    with pytest.raises(ModuleNotFoundError, match="there is no module 'nowhere'"):
        make_bundle("nowhere")
