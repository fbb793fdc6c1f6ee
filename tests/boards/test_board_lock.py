"""The lock, also among users who share a board's folder."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from qb_cluster.boards.agent.board_lock import BoardLock
from qb_cluster.boards.agent.refusal import Refusal

NOBODY = 65534
SINCE = "2026-01-01"
TAKER = """
import json, os, sys
from pathlib import Path
from qb_cluster.boards.agent.board_lock import BoardLock
lock = BoardLock(Path(sys.argv[1]))
os.setuid(int(sys.argv[2]))
print(json.dumps(lock.take(*sys.argv[3:])), flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def shared():
    """A folder such as /tmp: all may write there, and remove what is theirs."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def taken_by(user, folder, owner, who):
    """Have another process take the lock; gives what it was told."""
    if os.geteuid() != 0:
        pytest.skip("being another user takes root")
    command = [sys.executable, "-c", TAKER, folder, str(user), owner, who, SINCE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as taker:
        yield json.loads(taker.stdout.readline())
        taker.stdin.close()
        assert taker.wait(10) == 0


def leave_behind(folder, pid):
    """Leave what a killed holder leaves; gives its file."""
    path = folder / "quantbench.lock"
    path.write_text(json.dumps({"owner": "run 1", "who": "ann", "since": SINCE, "pid": pid}))
    path.chmod(0o644)
    return path


@pytest.fixture
def dead_pid():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_file_that_a_killed_agent_of_another_user_left_keeps_nobody_out(shared, dead_pid):
    leave_behind(shared, dead_pid)
    with taken_by(NOBODY, shared, "run 2", "bob") as busy:
        assert busy is None
        assert BoardLock(shared).take("run 3", "eve", SINCE) is not None


def test_a_holder_who_could_not_write_his_name_is_not_told_as_the_one_before(shared, dead_pid):
    leave_behind(shared, dead_pid)
    with taken_by(NOBODY, shared, "run 2", "bob"):
        assert BoardLock(shared).take("run 3", "eve", SINCE) == {}


def test_a_process_that_has_the_number_of_a_former_agent_is_left_alone(shared):
    with subprocess.Popen(["sleep", "60"]) as bystander:
        leave_behind(shared, bystander.pid)
        with taken_by(NOBODY, shared, "run 2", "bob"):
            assert BoardLock(shared).take("run 1", "ann", SINCE) == {}
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("pid", [-1, 0, "1", None, 1 << 80])
def test_a_number_that_is_no_process_is_never_signalled(shared, pid):
    leave_behind(shared, pid)
    with taken_by(NOBODY, shared, "run 2", "bob"):
        assert BoardLock(shared).take("run 1", "ann", SINCE) == {}


def test_a_link_is_refused_and_what_it_names_stays(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "quantbench.lock"
    for target in (victim, tmp_path / "nothing"):
        path.symlink_to(target)
        with pytest.raises(Refusal, match=rf"{path} cannot be locked \(it is a link") as caught:
            BoardLock(tmp_path).take("run 1", "ann", SINCE)
        assert caught.value.kind == "setup"
        path.unlink()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_what_is_no_file_is_refused_by_its_path(tmp_path):
    (tmp_path / "quantbench.lock").mkdir()
    with pytest.raises(Refusal, match=r"quantbench\.lock cannot be locked \(Is a directory\)"):
        BoardLock(tmp_path).take("run 1", "ann", SINCE)


def test_asking_again_and_again_keeps_no_descriptor_open(shared, dead_pid):
    leave_behind(shared, dead_pid)
    with taken_by(NOBODY, shared, "run 2", "bob"):
        before = descriptors()
        for _ in range(5):
            BoardLock(shared).take("run 3", "eve", SINCE)
        assert descriptors() == before
    before = descriptors()
    lock = BoardLock(shared)
    assert lock.take("run 3", "eve", SINCE) is None
    lock.release()
    assert descriptors() == before
    assert not list(shared.iterdir())


def test_another_user_who_asks_again_keeps_no_descriptor_open(shared):
    """He can only read the file, and cannot lock it."""
    lock = BoardLock(shared)
    assert lock.take("run 1", "ann", SINCE) is None
    script = TAKER.replace(
        "print(json.dumps(lock.take(*sys.argv[3:])), flush=True)",
        "for _ in range(5): lock.take(*sys.argv[3:])\n"
        "print(len(os.listdir('/proc/self/fd')) - 1, flush=True)",
    )
    if os.geteuid() != 0:
        pytest.skip("being another user takes root")
    command = [sys.executable, "-c", script, shared, str(NOBODY), "run 2", "bob", SINCE]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert int(done.stdout) == 3
    lock.release()
