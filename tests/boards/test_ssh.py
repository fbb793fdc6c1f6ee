"""A board behind a real SSH server."""

import os
import signal
import threading

import numpy as np
import psutil
import pytest

from qb_cluster.boards.board import Board
from qb_cluster.contracts import Latency, SshBoard
from qb_cluster.errors import BoardCrashedError, BoardError, BoardLostError
from qb_litert.runtime import TFLiteExecutable

RUNTIME = "qb_litert.runtime"
QUICK = Latency(warmup_s=0.01, min_runs=10, min_s=0.02)
LONG = Latency(warmup_s=0.01, min_runs=10, min_s=30)

pytestmark = pytest.mark.frameworks


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without any keys or known hosts."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


def connect(where):
    return Board.connect(where, RUNTIME, "run 1", "ann")


def refused(where):
    with pytest.raises(BoardError) as caught:
        connect(where).close()
    return str(caught.value)


def test_outputs_there_equal_those_here_and_times_come_back(
    sshd, folder, old_python, artifacts, inputs
):
    with connect(sshd.board(folder, old_python)) as board:
        assert board.lock() is None
        assert board.facts["runtime"] == "tflite-runtime"
        here = TFLiteExecutable(artifacts[1].data, threads=1)(inputs)["output"]
        there = board.open(artifacts[1], threads=1)(inputs)["output"]
        np.testing.assert_allclose(there, here, rtol=0, atol=0.0056)
        example = {"input": inputs["input"][:1]}
        timing = board.time(*artifacts, example, QUICK, threads=1, cores=[0])
        assert len(timing.result.samples("baseline")) >= QUICK.min_runs
        assert len(list(folder.iterdir())) == 2
    # The folder's fixture sees that nothing is left.


def test_the_users_own_ssh_config_is_honoured(sshd, folder, old_python, home):
    (home / ".ssh" / "config").write_text(
        f"Host bench\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User root\n"
        f"  IdentityFile {sshd.folder}/user_key\n  UserKnownHostsFile {sshd.known_hosts}\n"
    )
    with connect(SshBoard("bench", python=str(old_python), folder=str(folder))) as board:
        assert board.name == "bench"


def test_a_config_that_would_check_no_host_key_is_refused(sshd, folder, old_python, home):
    (home / ".ssh" / "config").write_text("Host *\n  UserKnownHostsFile none\n")
    where = sshd.board(folder, old_python, known_hosts="")
    assert "host keys are always checked" in refused(where)


def test_a_board_whose_key_is_unknown_is_refused(sshd, folder, old_python):
    where = sshd.board(folder, old_python, known_hosts="")
    assert "host key that is not known here" in refused(where)
    assert f"connect once by hand and compare its fingerprint: `ssh -p {sshd.port}" in refused(
        where
    )


def test_a_board_whose_key_changed_is_refused(sshd, folder, old_python):
    known = sshd.trust("other_host_key")
    said = refused(sshd.board(folder, old_python, known_hosts=str(known)))
    assert "answers with another host key than the one that is known" in said
    assert f"ssh-keygen -f {known} -R '[127.0.0.1]:{sshd.port}'" in said


def test_a_board_that_accepts_none_of_our_keys_says_so(sshd, folder, old_python):
    said = refused(sshd.board(folder, old_python, key=str(sshd.folder / "stranger_key")))
    assert "accepts none of our keys (passwords are never asked for)" in said
    said = refused(sshd.board(folder, old_python, key="/nowhere/key"))
    assert "/nowhere/key cannot be read (No such file or directory); name another file" in said


def test_no_such_host_and_nobody_there(sshd, folder, old_python):
    assert "cannot be reached" in refused(
        sshd.board(folder, old_python, host="no-such-host.invalid")
    )
    assert "cannot be reached" in refused(sshd.board(folder, old_python, port=1))


def test_a_board_without_that_python_says_so(sshd, folder, tmp_path):
    assert "has no '/nowhere/python3' that can be run" in refused(
        sshd.board(folder, "/nowhere/python3")
    )
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    assert "ended with status 0 and wrote nothing; is it a Python" in refused(
        sshd.board(folder, fake)
    )
    fake.write_text("#!/bin/sh\nhead -c 100000 /dev/zero\n")
    assert "prints without end" in refused(sshd.board(folder, fake))


def test_what_a_login_shell_prints_is_skipped(sshd, folder, old_python, tmp_path):
    chatty = tmp_path / "python3"
    chatty.write_text(f'#!/bin/sh\necho "Welcome!"\nexec {old_python} "$@"\n')
    chatty.chmod(0o755)
    with connect(sshd.board(folder, chatty)) as board:
        assert board.lock() is None


def test_a_folder_that_is_none_is_told(sshd, old_python):
    said = refused(sshd.board("/nowhere", old_python))
    assert "the agent cannot be kept in /nowhere" in said


def test_a_connection_cut_in_the_middle_of_a_run_is_a_loss_and_leaves_nothing(
    sshd, folder, old_python, artifacts, inputs
):
    board = connect(sshd.board(folder, old_python))
    assert board.lock() is None
    session = psutil.Process(board.facts["pid"]).parent()
    assert session.name().startswith("sshd")
    timer = threading.Timer(0.5, session.kill)
    timer.start()
    with pytest.raises(BoardLostError, match="connection was lost in the middle of 'time'"):
        board.time(*artifacts, {"input": inputs["input"][:1]}, LONG, threads=1)
    timer.join()
    board.close()


def test_an_agent_that_dies_by_a_fault_is_a_crash(sshd, folder, old_python):
    board = connect(sshd.board(folder, old_python))
    os.kill(board.facts["pid"], signal.SIGSEGV)
    with pytest.raises(BoardCrashedError, match="by SIGSEGV"):
        board.lock()
    board.close()
    connect(sshd.board(folder, old_python)).close()
