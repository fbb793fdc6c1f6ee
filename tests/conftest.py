"""Set-up that tests of several rooms share."""

import os
import secrets
import sys
from pathlib import Path

import pytest
from ssh_server import serving, wait_until

# An artifact that an earlier run of the tests left in the user's cache would hide what is tested.
os.environ["QB_CACHE_BYTES"] = "0"

# Clusters of tests listen at an address of this machine that others may reach. In a variable, so
# that no token of the user's is read or made.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

STUBS = Path(__file__).parent / "spec" / "stubs"
STRANGER = Path(__file__).parent / "end_to_end" / "stranger"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Have a real Ray once at a time where tests run side by side; a file's tests stay together."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a spec from its text, in a place where the stub plug-ins can be imported."""
    from qb_cluster.spec import load_spec

    path = tmp_path_factory.mktemp("specs") / "sweep.yaml"

    def load_text(text):
        path.write_text(text, encoding="utf-8")
        return load_spec(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUBS))
        yield load_text


@pytest.fixture
def spec_text():
    return """\
sweep: trial
models: [stub_plugins:small, stub_plugins:large]
datasets: [stub_plugins:data]
schemes: [weight_only, static]
bits: [w8, w4, w2, w8a8]
backends: [stub_plugins:Half]
"""


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """A server that boards are behind."""
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def board(sshd, tmp_path):
    """A board behind it, with our own Python; a test that leaves something on it fails."""
    folder = tmp_path / "board"
    folder.mkdir()
    yield sshd.board(folder, sys.executable)
    wait_until(lambda: not list(folder.iterdir()))


@pytest.fixture
def stranger(monkeypatch):
    """Plug-ins of somebody outside the project, in this process; their log goes nowhere."""
    monkeypatch.syspath_prepend(str(STRANGER))
    import stranger

    monkeypatch.setattr(stranger, "log", lambda word: None)
    yield stranger
    del sys.modules["stranger"]
