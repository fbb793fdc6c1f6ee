"""A real OpenSSH server on loopback, for boards."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from qb_cluster.contracts import SshBoard

SSHD = "/usr/sbin/sshd"


def wait_until(is_so, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def start_here(*words, log):
    with log.open("w") as file:
        return subprocess.Popen(words, stderr=file)


class Sshd:
    """An OpenSSH server of our own, and keys that it accepts.

    Args:
        folder: for all of its files.
        address: that it listens at, on some port.
        start: starts it where that address is, as ``start_here`` does on this machine.
    """

    def __init__(self, folder, address="127.0.0.1", start=start_here):
        self.folder = folder
        self.address = address
        for name in ("host_key", "other_host_key", "user_key", "stranger_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        lines = (
            f"ListenAddress {address}",
            f"AuthorizedKeysFile {folder}/authorized_keys",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PidFile none",
        )
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.known_hosts = self.trust("host_key")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        words = [SSHD, "-D", "-e", "-p", str(self.port), "-f", folder / "sshd_config"]
        self.process = start(*words, "-h", folder / "host_key", log=folder / "log")
        wait_until(self.listens)

    def listens(self):
        log = (self.folder / "log").read_text()
        assert self.process.poll() is None, log
        return "Server listening" in log

    def trust(self, *keys):
        path = self.folder / ("known_hosts_" + "_".join(keys))
        path.write_text(
            "".join(
                f"[{self.address}]:{self.port} {(self.folder / f'{key}.pub').read_text()}"
                for key in keys
            )
        )
        return path

    def board(self, folder, python, **other):
        return SshBoard(
            **{
                "host": self.address,
                "user": "root",
                "port": self.port,
                "python": str(python),
                "folder": str(folder),
                "known_hosts": str(self.known_hosts),
                "key": str(self.folder / "user_key"),
            }
            | other
        )


@contextmanager
def serving(folder):
    """Start a server that keeps its files in a folder; skip without one, but in CI."""
    missing = [
        what
        for what, is_there in (
            (SSHD, Path(SSHD).exists()),
            ("ssh-keygen", shutil.which("ssh-keygen")),
            ("root", os.geteuid() == 0),
        )
        if not is_there
    ]
    if missing:
        reason = f"a server of its own takes {', '.join(missing)}"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    server = Sshd(folder)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()
