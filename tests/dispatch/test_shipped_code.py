import os
import subprocess
import sys
from zipfile import ZipFile

import pytest

from qb_cluster.dispatch.shipped_code import pack_code
from qb_cluster.errors import PoolError
from qb_cluster.nodes.code_version import code_version


@pytest.fixture
def folder(tmp_path):
    """A user's folder."""
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.fixture
def pack(tmp_path, folder):
    def packed(leave_out=None):
        pack_code(tmp_path / "code.zip", folder, leave_out)
        return tmp_path / "code.zip"

    return packed


def put(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"here = {name!r}\n")


def users_files(zip_file):
    names = ZipFile(zip_file).namelist()
    return {name for name in names if not name.startswith(("qb_", "qb-"))}


def test_what_is_sent_runs_as_the_drivers_code_with_its_plug_ins(pack, folder, tmp_path):
    put(folder, "mine.py")
    there = tmp_path / "there"
    ZipFile(pack()).extractall(there)
    program = (
        "import mine, qb_cluster.nodes.code_version as code; from importlib.metadata import "
        "entry_points as e; print(code.__file__); print(mine.here); print(code.code_version());"
        "print(len([p for p in e(group='qb_cluster.backends') if p.dist.name == 'qb-cluster']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(there)},
        cwd=there,
        capture_output=True,
        text=True,
        check=True,
    )
    file, mine, code, backends = done.stdout.splitlines()
    assert file.startswith(str(there))
    assert (mine, code, backends) == ("mine.py", code_version(), "4")


def test_what_is_no_code_of_the_users_stays_here(pack, folder, tmp_path):
    put(folder, "mine.py", "package/part.py", "package/weights.bin")
    put(folder, ".secret", ".git/config", "package/__pycache__/part.pyc", "runs/old/run.json")
    put(folder, "results-of-march/run.json", "results-of-march/results/part.parquet")
    put(folder, "here/out/part.parquet", "venv/pyvenv.cfg", "venv/lib/torch.py")
    put(tmp_path, "elsewhere/data.bin", "linked.py")
    (folder / "data").symlink_to(tmp_path / "elsewhere")
    (folder / "linked.py").symlink_to(tmp_path / "linked.py")
    (folder / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    sent = users_files(pack(leave_out=folder / "here" / "out"))
    assert sent == {"mine.py", "package/part.py", "package/weights.bin", "linked.py"}


def test_ours_win_over_files_of_the_same_name(pack, folder):
    put(folder, "qb_cluster/errors.py", "qb_cluster/extra.py", "qb_mine/plug_in.py")
    packed = ZipFile(pack())
    assert b"QuantBenchError" in packed.read("qb_cluster/errors.py")
    assert "qb_cluster/extra.py" not in packed.namelist()
    assert "qb_mine/plug_in.py" in packed.namelist()


def test_the_same_code_is_the_same_bytes_whenever_it_was_written(pack, folder):
    put(folder, "mine.py")
    before = pack().read_bytes()
    os.utime(folder / "mine.py", (0, 0))  # no zip can say 1970
    assert pack().read_bytes() == before


def test_more_than_ray_sends_is_refused_and_the_largest_are_named(pack, folder, monkeypatch):
    monkeypatch.setenv("RAY_max_grpc_message_size", "9000000")
    put(folder, "mine.py")
    for name, size in (("big.bin", 8_000_000), ("bigger.bin", 9_500_000)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    match = r"Ray sends less than 9\.0 MB.* bigger\.bin \(9\.5 MB\), big\.bin \(8\.0 MB\)"
    with pytest.raises(PoolError, match=match):
        pack()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(pack, folder):
    put(folder, "mine.py")
    (folder / "mine.py").chmod(0)
    with pytest.raises(PoolError, match=r"Permission denied: .*mine\.py"):
        pack()
