import threading
import time

import pytest

from qb_cluster.catalog import model_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QB_CACHE", str(tmp_path))
    return tmp_path / "models"


def read(content):
    return content.decode() if content.startswith(b"model") else None


def test_a_model_wanted_by_many_at_once_is_trained_once(cache):
    calls, got = [], []

    def train():
        calls.append(1)
        time.sleep(0.2)
        return b"model"

    def want():
        got.append(model_cache.trained((b"data",), "bin", train, read))

    workers = [threading.Thread(target=want) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (len(calls), got) == (1, ["model"] * 5)
    assert len(list(cache.glob("*.bin"))) == 1


@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_a_damaged_file_is_trained_again_and_replaced(cache, damage):
    model_cache.trained((b"data",), "bin", lambda: b"model one", read)
    (path,) = cache.glob("*.bin")
    path.write_bytes(damage)
    assert model_cache.trained((b"data",), "bin", lambda: b"model two", read) == "model two"
    assert path.read_bytes() == b"model two"


@pytest.mark.usefixtures("cache")
def test_other_ingredients_are_another_model():
    # The same bytes cut elsewhere are other ingredients.
    for number, ingredients in enumerate([(b"ab", b"c"), (b"a", b"bc"), (b"abc",)]):
        content = f"model {number}"
        got = model_cache.trained(ingredients, "bin", content.encode, read)
        assert got == content


@pytest.mark.usefixtures("cache")
def test_training_that_gives_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match="cannot be read"):
        model_cache.trained((b"data",), "bin", lambda: b"garbage", read)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("QB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_cache.folder() == tmp_path / "qb-cluster"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_cache.folder() == tmp_path / ".cache" / "qb-cluster"
