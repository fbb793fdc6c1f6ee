"""Hosts of our own on this machine: network namespaces on one switch, with an SSH server each.

Each has an address, a name, a loopback, a home, a ``/tmp`` and processes of its own, so that what
tidies up on one (``ray stop``, say) finds nothing of another. Nothing of them is seen from outside,
and they reach nothing but each other. Cores, memory and all other files they share.

Whatever is done on one goes there by SSH.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ssh_server import SSHD, Sshd

TOOLS = ("ip", "unshare", "mount", "hostname", "bash", "ssh", "ssh-keygen", SSHD)
ROOT = Path(__file__).parents[2]
TMP = Path("/tmp")
HOME = Path("~root").expanduser()
END_S = 10.0


class Host:
    """A host, whose first process is its SSH server.

    Attributes:
        name: what it calls itself.
        address: on the network of the hosts.
        home: where others see its user's home.
        tmp: where others see its ``/tmp``.
    """

    def __init__(self, name, address, switch, folder, shared, profile):
        self.name = name
        self.address = address
        self.home = folder / "home"
        self.tmp = folder / "tmp"
        self._folder = folder
        self._shared = shared
        self._space = f"{switch}{name}"
        self._switch = switch
        self._sshd = None
        self._started = []
        for inner in (self.home, self.tmp, folder / "sshd"):
            inner.mkdir(parents=True)
        exports = (f"export {key}={shlex.quote(value)}\n" for key, value in profile.items())
        # Ray's launcher reads it before all that it does.
        (self.home / ".bashrc").write_text("".join(exports))

    def start(self):
        cable = ("type", "veth", "peer", "name", "eth0", "netns", self._space)
        _ip("-n", self._switch, "link", "add", self.name, *cable)
        _ip("-n", self._switch, "link", "set", self.name, "master", "switch", "up")
        _ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", self._space, "link", "set", link, "up")
        # It leads nowhere: programs look which way out they have, to learn their own address.
        _ip("-n", self._space, "route", "add", "default", "dev", "eth0")
        self._sshd = Sshd(self._folder / "sshd", self.address, self._start_first)

    @property
    def key(self):
        """The file of the key that logs in."""
        return self._folder / "sshd" / "user_key"

    def let_in(self, other):
        """Accept the key of another host."""
        with (self._folder / "sshd" / "authorized_keys").open("a") as accepted:
            accepted.write(other.key.with_suffix(".pub").read_text())

    def has_file(self, path, text, mode=0o600):
        """Put a file into its home."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.write_text(text)

    def run(self, *words, cwd=None, timeout=60):
        """Run a command to its end; what it prints and its exit status are as if it ran here."""
        return subprocess.run(
            self._by_ssh(words, cwd),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def popen(self, *words, log, cwd=None):
        """Start something that ends with the host at the latest; what it prints goes to a file."""
        with log.open("w") as file:
            process = subprocess.Popen(
                self._by_ssh(words, cwd),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    @contextmanager
    def cut_off(self):
        """Pull its cable out of the switch, and put it back."""
        _ip("-n", self._switch, "link", "set", self.name, "down")
        try:
            yield
        finally:
            _ip("-n", self._switch, "link", "set", self.name, "up")

    def board(self, python):
        """Give it as a board, which keeps what it needs in a folder of the test's."""
        folder = self._folder / "board"
        folder.mkdir()
        return self._sshd.board(folder, python)

    def end(self):
        """End all that runs there, and the host."""
        deadline = time.monotonic() + END_S
        while pids := _ip("netns", "pids", self._space).split():
            assert time.monotonic() < deadline, f"on {self.name}, {pids} do not end"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
        for process in self._started:
            process.kill()
            process.wait()
        _ip("netns", "del", self._space)

    def _start_first(self, *words, log):
        """Start the SSH server as what all other processes there come from, and end with.

        It listens at the usual port too, the only one that Ray's launcher knows.
        """
        steps = [["hostname", self.name]]
        own = {HOME: self.home, TMP: self.tmp}  # the homes lie in what the second one hides
        for seen in self._shared:
            for hidden in (hidden for hidden in own if seen.is_relative_to(hidden)):
                there = own[hidden] / seen.relative_to(hidden)
                there.mkdir(parents=True, exist_ok=True)
                steps.append(["mount", "--rbind", seen, there])
        steps += [["mount", "--rbind", folder, hidden] for hidden, folder in own.items()]
        steps.append(["exec", *words, "-p", "22"])
        script = " && ".join(shlex.join(map(str, step)) for step in steps)
        alone = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        inside = ("ip", "netns", "exec", self._space, *alone)
        with log.open("w") as file:
            process = subprocess.Popen([*inside, "sh", "-c", script], stderr=file)
        self._started.append(process)
        return process

    def _by_ssh(self, words, cwd):
        line = f". ~/.bashrc && cd {cwd or '~'} && exec {shlex.join(map(str, words))}"
        known = f"UserKnownHostsFile={self._sshd.known_hosts}"
        told = ("-F", "none", "-o", "LogLevel=ERROR", "-o", known, "-p", str(self._sshd.port))
        ssh = ("ssh", *told, "-i", self.key, f"root@{self.address}", line)
        return ["ip", "netns", "exec", self._switch, *ssh]


@contextmanager
def hosts(*names, folder, shared, profile):
    """Make hosts on one network; skip where that cannot be, but in CI.

    Args:
        names: of the hosts, 15 letters at most.
        folder: for their files.
        shared: the folder of which all see the same, with ``folder`` in it.
        profile: variables that shells there set.
    """
    if reason := _why_not():
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    switch = f"qb{os.getpid()}"
    network = "10.99.0"
    with ExitStack() as ends, _space(switch):
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{network}.254/24", "dev", "switch")  # for us
        _ip("-n", switch, "link", "set", "switch", "up")
        made = []
        seen = (shared, ROOT, Path(sys.prefix), Path(sys.base_prefix))
        for number, name in enumerate(names, start=1):
            host = Host(name, f"{network}.{number}", switch, folder / name, seen, profile)
            _ip("netns", "add", f"{switch}{name}")
            ends.callback(host.end)
            host.start()
            made.append(host)
        yield made


def _why_not():
    """Say what is missing; empty where all is there."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"hosts of our own take {', '.join(missing)}"
    if os.geteuid() != 0:
        return "hosts of our own take root"
    try:
        with _space(f"qb{os.getpid()}probe") as probe:
            _ip("-n", probe, "link", "add", "switch", "type", "bridge")
            _ip("-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "other")
            _ip("netns", "exec", probe, "unshare", "--pid", "--fork", "--mount-proc", "true")
    except RuntimeError as error:
        return f"hosts of our own take namespaces: {error}"
    return ""


@contextmanager
def _space(name):
    _ip("netns", "add", name)
    try:
        yield name
    finally:
        _ip("netns", "del", name)


def _ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`ip {' '.join(words)}` says: {done.stderr.strip()}")
    return done.stdout
