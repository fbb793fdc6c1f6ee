"""What every place for a run keeps to."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from qb_cluster.errors import RunFolderError
from qb_cluster.storage import StorageError, open_folder


@pytest.fixture
def folder(place):
    return open_folder(place)


def test_making_a_folder_makes_nothing(folder):
    assert not folder.exists()
    assert folder.names() == folder.names("deep/er") == []


def test_the_text_of_a_place_gives_the_same_folder_in_any_process(folder):
    folder.put("a/b", b"here")
    again = open_folder(pickle.loads(pickle.dumps(folder.place)))
    assert again.read("a/b") == b"here"
    assert again.place == folder.place
    assert open_folder(folder.folder("a").place).read("b") == b"here"


def test_a_file_is_read_as_it_was_written_whole_or_in_pieces(folder):
    data = bytes(range(256)) * 5_000
    folder.put("deep/er/file", data)
    assert folder.read("deep/er/file") == data
    assert folder.size("deep/er/file") == len(data)
    with folder.open("deep/er/file") as file:
        assert file.size() == len(data)
        assert file.read_at(10, 1_000) == data[1_000:1_010]
        file.seek(len(data) - 3)
        assert file.read() == data[-3:]
    folder.put("empty", b"")
    assert (folder.read("empty"), folder.size("empty")) == (b"", 0)


def test_what_is_not_there_is_not_found(folder):
    folder.put("a/b", b"")
    assert folder.size("a") is None or folder.names("a")  # a folder has no size worth knowing
    assert folder.size("nothing") is folder.size("a/nothing") is None
    for read in (folder.read, folder.open):
        for name in ("nothing", "a/nothing"):
            with pytest.raises(FileNotFoundError):
                read(name)
    folder.delete("nothing")
    folder.delete("a/nothing")


def test_names_are_those_directly_in_a_folder_sorted(folder):
    for name in ("t/b", "t/a", "t/deep/c", "top"):
        folder.put(name, b"")
    assert folder.names("t") == ["a", "b", "deep"]
    assert [name for name in folder.names() if name != ".tmp"] == ["t", "top"]
    folder.delete("t/a")
    assert folder.names("t") == ["b", "deep"]


def test_put_refuses_to_replace_and_replace_does_not(folder):
    folder.put("a/b", b"old")
    with pytest.raises(FileExistsError):
        folder.put("a/b", b"new")
    assert folder.read("a/b") == b"old"
    folder.replace("a/b", b"new")
    assert folder.read("a/b") == b"new"
    assert folder.names("a") == ["b"]


def test_many_may_replace_a_file_at_once(folder):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda content: folder.replace("one", content), contents))
    assert folder.read("one") in contents
    assert [name for name in folder.names() if name != ".tmp"] == ["one"]


def test_an_exchange_puts_deletes_and_keeps(folder):
    for name in ("a", "b", "c"):
        folder.put(f"t/{name}", name.encode())
    kept = folder.exchange("t", {"d": b"b and c"}, {"b", "c"}, lambda name: f"{name}-again")
    name = kept.get("a", "a")
    assert folder.names("t") == sorted([name, "d"])
    assert (folder.read(f"t/{name}"), folder.read("t/d")) == (b"a", b"b and c")


def test_an_exchange_makes_a_folder_that_is_not_there(folder):
    folder.exchange("t", {"a": b"1", "b": b"2"}, (), str)
    assert folder.names("t") == ["a", "b"]


def test_tidying_leaves_files_alone(folder):
    folder.lock().release()
    folder.put("t/a", b"1")
    folder.put("top", b"2")
    folder.tidy()
    assert (folder.read("t/a"), folder.read("top")) == (b"1", b"2")


def test_a_lock_makes_the_folder_and_is_not_listed(folder):
    lock = folder.lock()
    lock.check()
    assert folder.names() == []
    lock.release()
    lock.release()
    folder.lock().release()


def test_a_file_url_is_a_path(tmp_path):
    open_folder(f"file://{tmp_path}/run").put("a", b"1")
    assert (tmp_path / "run" / "a").read_bytes() == b"1"


def test_a_path_on_this_machine_is_made_absolute_for_other_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = open_folder("runs/digits")
    assert str(folder) == "runs/digits"
    assert Path(folder.place) == tmp_path / "runs" / "digits"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/run", r"no storage 'ftp'.*s3://BUCKET/PREFIX"),
        ("s3:///run", r"no place to store in.*s3://BUCKET/PREFIX"),
        ("s3://bucket/run?endpoint_override=x&colour=red", r"colour.*pyarrow\.fs after a \?"),
        ("gs:///run", r"no place to store in.*gs://BUCKET/PREFIX"),
    ],
)
def test_a_url_that_is_not_understood_is_refused_with_what_would_be(url, message):
    with pytest.raises(RunFolderError, match=message):
        open_folder(url)


def test_a_bucket_that_is_not_there_and_a_store_that_cannot_be_reached_are_told(s3_place):
    nowhere = open_folder(s3_place.replace("//bucket-", "//no-bucket-"))
    with pytest.raises(StorageError, match="no such bucket: make it first"):
        nowhere.put("a", b"1")
    options = "?endpoint_override=127.0.0.1:9&scheme=http"
    unreachable = open_folder(s3_place.partition("?")[0] + options)
    with pytest.raises(StorageError, match="cannot be reached: mind the endpoint"):
        unreachable.read("a")


def test_secrets_in_a_url_are_in_no_message(s3_place):
    folder = open_folder(s3_place.replace("s3://", "s3://key:secret@"))
    folder.put("a", b"1")
    assert "secret" in folder.place
    assert "secret" not in str(folder)


def test_damage_to_a_file_and_trouble_with_the_store_can_be_told_apart(s3_place):
    import pyarrow.parquet as pq

    folder = open_folder(s3_place)
    folder.put("damaged", b"PAR1 no more")
    with folder.open("damaged") as file, pytest.raises(pa.ArrowException):
        pq.ParquetFile(file)
    folder.put("gone", b"x" * 1_000)
    with folder.open("gone") as file:
        folder.replace("gone", b"")
        with pytest.raises(StorageError):
            file.read_at(100, 500)
