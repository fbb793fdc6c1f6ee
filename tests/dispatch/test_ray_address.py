"""Finding the head of a cluster, where there is none or more than one."""

import http.server
import socket
import subprocess
import sys
import threading
import time

import pytest

from qb_cluster.dispatch.ray_address import find_head
from qb_cluster.errors import PoolError


@pytest.fixture
def silent():
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web():
    """A web server."""
    handler = http.server.BaseHTTPRequestHandler
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("what", ["silent", "web"])
def test_whoever_listens_and_is_no_head_is_told_in_seconds(request, what):
    port = request.getfixturevalue(what)
    began = time.monotonic()
    with pytest.raises(PoolError, match=f"listens at '127.0.0.1:{port}' is no head of a Ray"):
        find_head(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 15  # Ray itself takes 40


@pytest.mark.parametrize("address", ["ray://head:10001", "head:port", ":6379", "head:"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(PoolError, match="is no address of a Ray cluster: write HOST:PORT, or auto"):
        find_head(address)


def test_a_host_alone_means_the_port_that_ray_takes_by_itself():
    with pytest.raises(OSError, match="refused"):
        find_head("127.0.0.2")


def test_nobody_chooses_for_the_user_between_clusters(monkeypatch):
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    two = {"10.0.0.2:6379", "10.0.0.2:34385"}
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: two)
    with pytest.raises(PoolError, match=r"at 10\.0\.0\.2:34385 and 10\.0\.0\.2:6379; name the one"):
        find_head("auto")


def test_without_ray_the_user_is_told_how_to_run_without_it():
    program = """
import sys
sys.modules["ray"] = None
from qb_cluster.dispatch.ray_cluster import RayCluster
from qb_cluster.errors import PoolError
try:
    RayCluster(None, 1)
except PoolError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Ray is not installed in this Python" in done.stdout
    assert "--pool inline" in done.stdout
