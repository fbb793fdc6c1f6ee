"""Clusters that ask for a token, that do not, and whose nodes have other code than the driver."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pool_runners
import pytest
from click.testing import CliRunner
from sweep_cells import cell_of

from qb_cluster.cli import cli
from qb_cluster.contracts import Ref, Task
from qb_cluster.dispatch import ray_access
from qb_cluster.dispatch.ray_access import knock, set_auth_mode
from qb_cluster.dispatch.ray_cluster import RayCluster
from qb_cluster.dispatch.ray_pool import RayPool
from qb_cluster.dispatch.shipped_code import pack_code
from qb_cluster.errors import PoolError

pytestmark = [
    pytest.mark.ray,
    # JAX, loaded by other tests, fears for children that do not exec; those of Ray do.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]

OPEN_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def open_address():
    """A cluster at an address that others can reach, which lets anybody in."""
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_CLUSTER],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process.stdout.readline().strip()
        process.communicate("\n", timeout=30)


@pytest.fixture(scope="module")
def other_code(tmp_path_factory):
    """A folder with our package as it was before somebody changed it."""
    folder = tmp_path_factory.mktemp("other")
    (ours,) = find_spec("qb_cluster").submodule_search_locations
    shutil.copytree(ours, folder / "qb_cluster", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "qb_cluster" / "errors.py").open("a") as file:
        file.write("\n# an older comment\n")
    return folder


@pytest.fixture(scope="module")
def cluster(other_code):
    """A cluster at loopback that asks for a token, and whose only node has other code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        patch.setenv("PYTHONPATH", str(other_code))
        head = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.delenv("PYTHONPATH")
        yield cluster
        cluster.shutdown()


@pytest.fixture
def user(monkeypatch, tmp_path):
    """A user without a token."""
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    monkeypatch.undo()
    set_auth_mode("token")  # with the token of the tests


def test_a_cluster_that_lets_anybody_in_is_refused_unless_that_is_wanted(open_address):
    before = time.monotonic()
    refused = CliRunner().invoke(cli, ["devices", "--address", open_address])
    assert isinstance(refused.exception, PoolError)
    assert "asks for no token: whoever reaches its nodes" in str(refused.exception)
    assert "--allow-unauthenticated" in str(refused.exception)
    assert time.monotonic() - before < 10.0
    assert os.environ["RAY_AUTH_MODE"] == "token"
    allowed = ["devices", "--address", open_address, "--allow-unauthenticated"]
    listed = CliRunner().invoke(cli, allowed)
    assert listed.exit_code == 0, listed.exception
    assert listed.stdout.splitlines()[1].split()[1] == "1"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_token_is_not_asked_for_where_none_is_needed(open_address, user):
    assert not knock(open_address).asks_for_token


def test_a_cluster_that_asks_for_a_token_says_what_it_runs(cluster):
    access = knock(cluster.address)
    assert access.asks_for_token
    assert access.hosts == ("127.0.0.1",)
    assert access.ray
    assert access.python


@pytest.mark.parametrize("other", [{"ray": "2.0.0"}, {"python": "3.10.1"}])
def test_a_head_of_another_ray_or_python_is_refused_before_ray_connects(
    cluster, monkeypatch, other
):
    """Such a head cannot be had here: what this one tells at its door is changed."""
    import ray

    told = replace(knock(cluster.address), **other)
    monkeypatch.setattr(ray_access, "knock", lambda address: told)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was entered"))
    refused = CliRunner().invoke(cli, ["devices", "--address", cluster.address])
    assert isinstance(refused.exception, PoolError)
    here = f"Ray {ray.__version__} with Python {platform.python_version()}"
    assert f"runs Ray {told.ray} with Python {told.python}, and" in str(refused.exception)
    assert f"this driver {here}; install the same" in str(refused.exception)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_missing_token_is_an_error_that_says_where_it_belongs(cluster, user, capfd):
    with pytest.raises(PoolError, match=r"asks for a token and this machine has none.*auth_token"):
        RayCluster(cluster.address, None)
    assert capfd.readouterr().err == ""


def test_another_clusters_token_is_refused_at_once_and_kept_from_others(
    cluster, user, caplog, capfd
):
    file = user / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("0" * 64)
    file.chmod(0o644)
    before = time.monotonic()
    with pytest.raises(PoolError, match=rf"does not take this machine's token, .*{file}"):
        RayCluster(cluster.address, None)
    assert time.monotonic() - before < 10.0
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"could read the Ray token in {file}" in caplog.text
    assert capfd.readouterr().err == ""


def outcome(address, folder, logs, *, code):
    """Run one stage with what the user has in a folder."""
    pool = RayPool(
        "the place",
        logs,
        threads=1,
        import_paths=[] if code else [str(folder)],
        address=address,
        make_runner=pool_runners.Doing,
        patience_s=20.0,
        code=code,
    )
    try:
        (up,) = pool.wait(20.0)
        cell = replace(cell_of("a", 1), model=Ref("deed", "nothing"))
        pool.start(up.worker, (Task(cell, "quality", 1, (0,)),))
        (ended,) = pool.wait(20.0)
        return ended.outcomes[0]
    finally:
        pool.close()


def test_a_node_of_other_code_is_refused_and_runs_the_drivers_where_that_is_sent(
    cluster, tmp_path, monkeypatch
):
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)  # Ray has workers import from where the driver is
    shutil.copy(Path(pool_runners.__file__), folder)
    with pytest.raises(PoolError, match=r"it runs qb-cluster .* and this driver"):
        outcome(cluster.address, folder, tmp_path / "logs", code=None)
    pack_code(tmp_path / "code.zip", folder)
    # So does `ray job submit --working-dir` tell a driver what it has sent already.
    job = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0000.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    sent = outcome(cluster.address, folder, tmp_path / "logs", code=tmp_path / "code.zip")
    assert sent.status == "ok"
