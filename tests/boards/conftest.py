import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from old_runtime import python_with_tflite_runtime

from qb_cluster.contracts import Bits, Quantization, Scheme, SshBoard

SSHD = "/usr/sbin/sshd"


def wait_until(is_so, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def old_python():
    return python_with_tflite_runtime()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The board's folder; a test that leaves something in it fails."""
    folder = tmp_path / "board"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    wait_until(lambda: not list(folder.iterdir()))


@pytest.fixture(scope="session")
def inputs():
    return {"input": np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}


@pytest.fixture(scope="session")
def artifacts(inputs):
    """A float file and the int8 file made of it."""
    import torch

    from qb_tflite import TFLiteBackend

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    backend = TFLiteBackend()
    baseline = backend.convert(lambda: net, {"input": inputs["input"][:1]})
    static = Quantization(Scheme("static", "static"), Bits(8, 8), "native")
    return baseline, backend.quantize(lambda: net, baseline, static, inputs)


@pytest.fixture
def bare_python(tmp_path):
    """Python in an environment of its own, with nothing in it, and where packages go."""
    environment = tmp_path / "bare"
    command = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(command, check=True)
    return environment / "bin" / "python", next(environment.glob("lib/python3*/site-packages"))


class Sshd:
    """An OpenSSH server of our own on loopback, and keys that it accepts."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("host_key", "other_host_key", "user_key", "stranger_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        lines = (
            "ListenAddress 127.0.0.1",
            f"AuthorizedKeysFile {folder}/authorized_keys",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PidFile none",
        )
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.known_hosts = self.trust("host_key")
        words = [SSHD, "-D", "-e", "-p", str(self.port), "-f", folder / "sshd_config"]
        words += ["-h", folder / "host_key"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(words, stderr=log)
        wait_until(self.answers)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def trust(self, *keys):
        path = self.folder / ("known_hosts_" + "_".join(keys))
        path.write_text(
            "".join(
                f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}"
                for key in keys
            )
        )
        return path

    def board(self, folder, python, **other):
        return SshBoard(
            **{
                "host": "127.0.0.1",
                "user": "root",
                "port": self.port,
                "python": str(python),
                "folder": str(folder),
                "known_hosts": str(self.known_hosts),
                "key": str(self.folder / "user_key"),
            }
            | other
        )


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
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
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.process.terminate()
    server.process.wait()
