"""A board behind a real SSH server."""

import asyncio
import os
import signal
import socket
import threading
from contextlib import contextmanager

import asyncssh
import numpy as np
import psutil
import pytest

from qb_cluster.boards.board import Board
from qb_cluster.contracts import Latency, SshBoard
from qb_cluster.errors import (
    BoardCrashedError,
    BoardError,
    BoardLostError,
    BoardUnreachableError,
)
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
    """Give what is said of a board that somebody must do something about."""
    with pytest.raises(BoardError) as caught:
        connect(where).close()
    assert not isinstance(caught.value, BoardUnreachableError)
    return str(caught.value)


def unreachable(where):
    """Give what is said of a board that is worth asking again."""
    with pytest.raises(BoardUnreachableError) as caught:
        connect(where).close()
    return str(caught.value)


@contextmanager
def closing_after(text):
    """Serve connections that get a text and are closed; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(text)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def letting_in(sshd, on_session):
    """Serve SSH that lets everybody in and then does as it is told; gives the port."""

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn):
            self.connection = conn

        def begin_auth(self, username):
            return False

        def session_requested(self):
            on_session(self.connection)
            return False

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def listen():
        keys = [str(sshd.folder / "host_key")]
        return await asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=keys)

    server = call(listen())
    try:
        yield server.get_port()
    finally:
        server.close()
        call(server.wait_closed())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


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
        assert board.name == "board 'bench'"


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
    assert "cannot be reached" in unreachable(
        sshd.board(folder, old_python, host="no-such-host.invalid")
    )
    assert "cannot be reached" in unreachable(sshd.board(folder, old_python, port=1))


@pytest.mark.parametrize("text", [b"", b"Exceeded MaxStartups\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_a_board_that_closes_the_connection_before_we_are_in_is_asked_again(
    sshd, folder, old_python, text
):
    with closing_after(text) as port:
        said = unreachable(sshd.board(folder, old_python, port=port))
    assert "may be booting or shutting down" in said or "Broken pipe" in said or "reset" in said


def test_a_board_that_its_jump_host_does_not_reach_is_asked_again(sshd, folder, old_python, home):
    (home / ".ssh" / "config").write_text(
        f"Host bench\n  HostName 127.0.0.1\n  Port 1\n  ProxyJump root@127.0.0.1:{sshd.port}\n"
    )
    (home / ".ssh" / "known_hosts").write_text(sshd.known_hosts.read_text())
    (home / ".ssh" / "id_ed25519").write_text((sshd.folder / "user_key").read_text())
    where = SshBoard("bench", python=str(old_python), folder=str(folder))
    assert "closed before it let us in (Connection refused)" in unreachable(where)


def test_a_board_that_goes_when_a_command_starts_is_asked_again(sshd, folder, old_python, tmp_path):
    def where(port):
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {(sshd.folder / 'host_key.pub').read_text()}")
        return sshd.board(folder, old_python, port=port, known_hosts=str(known))

    with letting_in(sshd, on_session=lambda connection: connection.abort()) as port:
        assert "lets us in but runs no command" in unreachable(where(port))
    with letting_in(sshd, on_session=lambda connection: None) as port:
        assert "lets us in but runs no command" in refused(where(port))


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_an_agent_that_is_ended_by_a_signal_while_it_starts_is_lost(sshd, folder, tmp_path, name):
    fake = tmp_path / "python3"
    fake.write_text(f"#!/bin/sh\nkill -{name} $$\n")
    fake.chmod(0o755)
    with pytest.raises(BoardLostError, match=f"was ended by SIG{name} while the agent started"):
        connect(sshd.board(folder, fake))


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
