"""An object store on this machine, and reading what a run has put there as others would."""

import logging
import threading
import time
from itertools import count

import pandas as pd
import pytest
from pyarrow import fs

_numbers = count()


@pytest.fixture(scope="session")
def s3_server():
    """Address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_place(s3_server, monkeypatch):
    """URL of a folder in a new bucket."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_numbers)}"
    options = f"endpoint_override={s3_server}&scheme=http"
    system, path = fs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    system.create_dir(path)
    return f"s3://{bucket}/runs/run?{options}"


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder that is not there yet: a path, or a URL."""
    if request.param == "s3":
        return request.getfixturevalue("s3_place")
    return str(tmp_path / "runs" / "run")


def system_of(place):
    """The file system of a place, and the path in it."""
    if "://" in place:
        return fs.FileSystem.from_uri(place)
    return fs.LocalFileSystem(), place


def read(place, table):
    """A table, as anybody reads it."""
    system, path = system_of(place)
    return pd.read_parquet(f"{path}/{table}", filesystem=system)


def names(place, folder):
    """Names in a folder, sorted."""
    system, path = system_of(place)
    found = system.get_file_info(fs.FileSelector(f"{path}/{folder}", allow_not_found=True))
    return sorted(info.base_name for info in found)


def write(place, name, data):
    """Write a file, as a stranger would."""
    system, path = system_of(place)
    with system.open_output_stream(f"{path}/{name}") as file:
        file.write(data)


def take_away_lock(folder):
    """Delete the lock of a folder; again if its keeper was just rewriting it."""
    (keeper,) = (thread for thread in threading.enumerate() if thread.name == "qb-lock")
    deadline = time.monotonic() + 60
    while keeper.is_alive():
        assert time.monotonic() < deadline, "its holder does not notice"
        for name in folder.names(".lock"):
            folder.delete(f".lock/{name}")
        keeper.join(0.2)
