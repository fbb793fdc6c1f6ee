"""A worker in another Python of this machine."""

import os
import pickle
import shutil
import site
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ssh_server import wait_until
from worker_stubs import FLOAT

from qb_cluster.contracts import Ref, Task
from qb_cluster.errors import BoardLostError, UnsupportedError
from qb_cluster.nodes.code_version import code_version
from qb_cluster.worker import interpreter
from qb_cluster.worker.interpreter import Interpreter

ROOT = Path(__file__).parents[2]
DRIVER = """
import pickle, sys
from pathlib import Path
from qb_cluster.worker.interpreter import Interpreter
task = pickle.loads(Path(sys.argv[2]).read_bytes())
Interpreter(Path(sys.executable), sys.argv[1]).run(task)
"""
SLEEPER = """
import os, time
from pathlib import Path
from worker_stubs import Stub

class Sleeper(Stub):
    def convert(self, model, example):
        Path(__file__).with_name("pid.new").write_text(str(os.getpid()))
        Path(__file__).with_name("pid.new").rename(Path(__file__).with_name("pid"))
        time.sleep(60)
"""


def task(backend="worker_stubs:Stub"):
    cell = replace(FLOAT, backend=Ref("b", backend))
    return Task(cell, "quality", 1, ())


@pytest.fixture(autouse=True)
def known_code():
    """Remember our code as it is now, and with all that this Python finds."""
    code_version.cache_clear()
    code_version()


@pytest.fixture
def other(tmp_path):
    """Another Python, with what QuantBench needs and without it; and where packages go."""
    environment = tmp_path / "env"
    command = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(command, check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    ours = [path for path in sys.path if "site-packages" in path]
    (packages / "others.pth").write_text("\n".join(ours))
    return environment / "bin" / "python", packages


@pytest.fixture
def installed(monkeypatch, tmp_path, known_code):
    """Have this Python find QuantBench in its own installation, and so not share it."""
    paths = [
        path for path in sys.path if Path(path or ".").resolve() not in {ROOT, ROOT / "backends"}
    ]
    monkeypatch.setattr(sys, "path", paths)
    monkeypatch.chdir(tmp_path)


def copy_quantbench(packages):
    for source in (ROOT / "qb_cluster", *(ROOT / "backends").glob("qb_*")):
        shutil.copytree(source, packages / source.name)


def test_without_quantbench_there_is_no_worker(other, installed, tmp_path):
    assert not Interpreter(other[0], str(tmp_path)).has_quantbench
    assert not Interpreter(Path("/nowhere/python"), str(tmp_path)).has_quantbench


def test_what_prints_nothing_is_no_python_with_quantbench(tmp_path):
    assert not Interpreter(Path("/bin/true"), str(tmp_path)).has_quantbench


def test_one_that_does_not_answer_in_time_is_told_and_asked_again(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    there = Interpreter(python, str(tmp_path / "artifacts"))
    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "_PROBE_S", 0.1)
        with pytest.raises(BoardLostError, match=rf"{python} did not say within 0.1 s .*--rerun"):
            there.run(task())
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    outcome = there.run(task())
    there.close()
    assert outcome.status == "ok", outcome.error


def test_the_same_quantbench_runs_there(other, installed, tmp_path):
    python, packages = other
    copy_quantbench(packages)
    there = Interpreter(python, str(tmp_path / "artifacts"))
    assert there.has_quantbench
    outcome = there.run(task())
    there.close()
    assert outcome.status == "ok", outcome.error


def test_another_quantbench_is_refused_and_both_are_named(other, installed, tmp_path):
    python, packages = other
    copy_quantbench(packages)
    with (packages / "qb_cluster" / "errors.py").open("a") as file:
        file.write("# an older one\n")
    there = Interpreter(python, str(tmp_path))
    assert there.has_quantbench
    with pytest.raises(UnsupportedError, match="install the same QuantBench there") as caught:
        there.run(task())
    said = str(caught.value)
    assert said.startswith(f"{python} has QuantBench 0.1.0 (code ")
    assert f"this is {code_version()}" in said


def test_one_too_old_to_name_its_code_is_refused(other, installed, tmp_path):
    python, packages = other
    (packages / "qb_cluster" / "worker").mkdir(parents=True)
    (packages / "qb_cluster" / "__init__.py").write_text("print('Hello!')\n__version__ = '0.0.9'\n")
    (packages / "qb_cluster" / "worker" / "__init__.py").touch()
    with pytest.raises(UnsupportedError, match=r"has QuantBench 0\.0\.9, and this is"):
        Interpreter(python, str(tmp_path)).run(task())


def test_another_python_is_no_other_quantbench(monkeypatch, tmp_path):
    ours = code_version().partition(", Python")[0]
    monkeypatch.setattr(interpreter, "code_version", lambda: f"{ours}, Python 3.99.1)")
    there = Interpreter(Path(sys.executable), str(tmp_path / "artifacts"))
    outcome = there.run(task())
    there.close()
    assert outcome.status == "ok", outcome.error


@pytest.mark.parametrize("prefix", ["link", "real"])
@pytest.mark.parametrize("found", ["link", "real"])
def test_packages_of_our_own_installation_are_kept_from_it(monkeypatch, tmp_path, prefix, found):
    (tmp_path / "real" / "lib").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / prefix))
    monkeypatch.setattr(sys, "path", [str(tmp_path / found / "lib"), str(tmp_path / "plug-ins")])
    assert interpreter._environment()["PYTHONPATH"] == str(tmp_path / "plug-ins")


def test_packages_of_the_user_are_kept_from_it(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "user"), str(tmp_path / "plug-ins")])
    assert interpreter._environment()["PYTHONPATH"] == str(tmp_path / "plug-ins")


def test_a_killed_driver_leaves_no_worker_in_the_middle_of_a_stage(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "task").write_bytes(pickle.dumps(task("sleeper:Sleeper")))
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tests" / "support")])
    command = [sys.executable, "-c", DRIVER, tmp_path / "artifacts", tmp_path / "task"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}) as driver:
        try:
            wait_until((tmp_path / "pid").exists)
        finally:
            driver.kill()
    worker = int((tmp_path / "pid").read_text())
    try:
        wait_until(lambda: not psutil.pid_exists(worker), seconds=30)
    finally:
        if psutil.pid_exists(worker):
            os.kill(worker, 9)
