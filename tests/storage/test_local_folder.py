"""What is true of a local folder alone."""

import os
import threading
import time

import pandas as pd
import pytest
from pyarrow.dataset import dataset

from qb_cluster.storage.local_folder import LocalFolder


@pytest.fixture
def folder(tmp_path):
    folder = LocalFolder(tmp_path / "run")
    for name in ("a", "b"):
        folder.put(f"t/{name}", name.encode())
    return folder


def fail_at(monkeypatch, what, number):
    """Let the number-th call of a function of `os` fail."""
    real, calls = getattr(os, what), iter(range(100))

    def failing(*arguments, **options):
        if next(calls) == number:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, what, failing)


@pytest.mark.parametrize(
    ("what", "number"), [("rename", 0), ("rename", 1), *(("fsync", n) for n in range(3))]
)
def test_an_exchange_that_fails_leaves_what_was_there(folder, monkeypatch, what, number):
    fail_at(monkeypatch, what, number)
    with pytest.raises(OSError, match="No space left"):
        folder.exchange("t", {"c": b"c"}, {"b"}, lambda name: f"{name}2")
    monkeypatch.undo()
    assert folder.names("t") == ["a", "b"]
    assert list((folder.path / ".tmp").iterdir()) == []
    folder.exchange("t", {"c": b"c"}, {"b"}, lambda name: f"{name}2")
    assert folder.names("t") == ["a2", "c"]


def test_an_exchange_that_was_killed_halfway_is_taken_back(folder):
    (folder.path / "t").rename(folder.path / ".tmp" / "t.old")
    with pytest.raises(FileNotFoundError):
        folder.names("t")
    with pytest.raises(FileNotFoundError, match="cut short"):
        folder.put("t/c", b"")
    folder.tidy()
    assert folder.names("t") == ["a", "b"]
    assert list((folder.path / ".tmp").iterdir()) == []


def test_an_exchange_where_links_are_not_to_be_had_copies(folder, monkeypatch):
    def no_links(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    folder.exchange("t", {}, {"b"}, lambda name: f"{name}2")
    assert folder.read("t/a2") == b"a"


def test_an_exchange_keeps_other_peoples_folders(folder):
    folder.put("t/theirs/x", b"precious")
    folder.exchange("t", {}, {"b"}, lambda name: f"{name}2")
    assert folder.read("t/theirs/x") == b"precious"


def test_a_write_that_fails_leaves_nothing(folder, monkeypatch):
    for name in ("t/c", "top"):
        fail_at(monkeypatch, "fsync", 0)
        with pytest.raises(OSError, match="No space left"):
            folder.put(name, b"x")
        monkeypatch.undo()
    assert folder.names("t") == ["a", "b"]
    assert sorted(path.name for path in folder.path.iterdir()) == [".tmp", "t"]
    assert list((folder.path / ".tmp").iterdir()) == []


def test_a_plain_reader_that_listed_files_before_an_exchange_is_told(tmp_path):
    folder = LocalFolder(tmp_path)
    rows = pd.DataFrame({"n": range(100)}).to_parquet()
    folder.exchange("t", {"before": rows}, (), str)
    listed = dataset(tmp_path / "t")
    folder.exchange("t", {"after": rows}, {"before"}, str)
    with pytest.raises(FileNotFoundError):
        listed.to_table()
    assert list(pd.read_parquet(tmp_path / "t")["n"]) == list(range(100))


def test_a_plain_reader_beside_exchanges_sees_all_rows_once_or_fails(tmp_path):
    """Each exchange puts two halves of the rows together or takes them apart; others stay."""
    folder = LocalFolder(tmp_path)
    halves = [pd.DataFrame({"n": range(start, 100, 2)}).to_parquet() for start in (0, 1)]
    whole = pd.DataFrame({"n": range(100)}).to_parquet()
    others = {f"k{n}.0": pd.DataFrame({"n": [n]}).to_parquet() for n in range(100, 180)}
    folder.exchange("t", {"half0": halves[0], "half1": halves[1]} | others, (), str)
    stop = threading.Event()

    def exchange():
        for number in range(1, 10_000):
            if stop.is_set():
                return
            put = (
                {f"whole-{number}": whole}
                if number % 2
                else {f"half0-{number}": halves[0], f"half1-{number}": halves[1]}
            )
            gone = [name for name in folder.names("t") if not name.startswith("k")]
            folder.exchange(
                "t", put, gone, lambda name, number=number: f"{name.partition('.')[0]}.{number}"
            )
            time.sleep(0.05)

    writer = threading.Thread(target=exchange)
    writer.start()
    began = time.monotonic()
    try:
        while time.monotonic() - began < 3:
            try:
                frame = pd.read_parquet(tmp_path / "t")
                found = frame["n"]  # it has no columns when all files went before the first look
            except (FileNotFoundError, KeyError):
                continue
            assert sorted(found) == list(range(180))
    finally:
        stop.set()
        writer.join()
    assert sorted(pd.read_parquet(tmp_path / "t")["n"]) == list(range(180))
