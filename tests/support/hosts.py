"""Hosts of our own on this machine: network namespaces on one switch.

Each has an address, a name and a loopback of its own. Nothing of them is seen from outside, and
they reach nothing but each other. Cores, memory and files they share.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager

import pytest
from ssh_server import SSHD, Sshd

TOOLS = ("ip", "unshare", "hostname", "ssh-keygen", SSHD)
END_S = 10.0


class Host:
    """A host: a network namespace, and a host name for whatever is started in it.

    Attributes:
        name: what it calls itself.
        address: on the network of the hosts.
    """

    def __init__(self, name, address, switch, env):
        self.name = name
        self.address = address
        self._space = f"{switch}{name}"
        self._switch = switch
        self._env = env
        self._started = []

    def plug_in(self):
        cable = ("type", "veth", "peer", "name", "eth0", "netns", self._space)
        _ip("-n", self._switch, "link", "add", self.name, *cable)
        _ip("-n", self._switch, "link", "set", self.name, "master", "switch", "up")
        _ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", self._space, "link", "set", link, "up")
        # It leads nowhere: programs look which way out they have, to learn their own address.
        _ip("-n", self._space, "route", "add", "default", "dev", "eth0")

    def run(self, *words, cwd=None, env=None):
        return subprocess.run(
            self._command(words),
            cwd=cwd,
            env=os.environ | self._env | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def popen(self, *words, log, cwd=None):
        """Start something that ends with the host at the latest; what it prints goes to a file."""
        with log.open("w") as file:
            process = subprocess.Popen(
                self._command(words),
                cwd=cwd,
                env=os.environ | self._env,
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

    def serve_ssh(self, folder):
        """Start its SSH server, which keeps its files in a folder."""
        return Sshd(folder, self.address, self.popen)

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
            process.wait()
        _ip("netns", "del", self._space)

    def _command(self, words):
        there = ("ip", "netns", "exec", self._space, "unshare", "--uts")
        return [*there, "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *map(str, words)]


@contextmanager
def hosts(*names, env):
    """Make hosts on one network; skip where that cannot be, but in CI.

    Args:
        names: of the hosts, 15 letters at most.
        env: for everything that runs there.
    """
    if reason := _why_not():
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    switch = f"qb{os.getpid()}"
    # Not that of another run of these tests: Ray looks at the processes of the whole machine.
    network = f"10.99.{os.getpid() % 255}"
    with ExitStack() as ends, _space(switch):
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        made = []
        for number, name in enumerate(names, start=1):
            host = Host(name, f"{network}.{number}", switch, env)
            _ip("netns", "add", f"{switch}{name}")
            ends.callback(host.end)
            host.plug_in()
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
    except RuntimeError as error:
        return f"hosts of our own take network namespaces: {error}"
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
