"""The Keras models trained on ``digits``, and the cache that keeps them."""

import json
import threading
import time

import numpy as np
import pytest

from qb_cluster.errors import PlugInError
from qb_tensorflow import digits as models
from qb_tensorflow import keras_file, model_cache
from qb_tensorflow.framework import tensorflow

pytestmark = pytest.mark.frameworks


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QB_CACHE", str(tmp_path))
    return tmp_path / "models"


def archive(value=1.0):
    tensorflow()
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([np.full((2, 1), value), np.zeros(1)])
    return keras_file.dump(model)


@pytest.mark.usefixtures("cache")
def test_training_gives_the_same_weights_in_every_process(monkeypatch):
    first = models.digits_keras_cnn(epochs=1)
    trainings = []
    train = models._train

    def counted(options):
        trainings.append(options)
        return train(options)

    monkeypatch.setattr(models, "_train", counted)
    models.digits_keras_cnn(epochs=1)
    assert trainings == []
    options = {"net": "cnn", "seed": 0, "epochs": 1, "width": 16}
    again = keras_file.load(train(options))
    for one, two in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_training_that_fails_says_why():
    with pytest.raises(PlugInError, match="unexpected keyword argument 'depth'"):
        models._train({"net": "cnn", "depth": 3})


def test_other_options_are_other_models(cache, monkeypatch):
    trained = []

    def train(options):
        trained.append(json.dumps(options))
        return archive()

    monkeypatch.setattr(models, "_train", train)
    for options in ({}, {"seed": 1}, {"hidden": 32}, {}):
        models.digits_keras_mlp(**options)
    models.digits_keras_cnn()
    assert len(trained) == len(set(trained)) == 4
    assert len(list(cache.glob("*.keras"))) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_file_is_trained_again(cache, damage):
    model_cache.trained((b"data",), archive)
    (path,) = cache.glob("*.keras")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:500], "empty": b"", "garbage": b"garbage" * 100}[damage])
    model = model_cache.trained((b"data",), lambda: archive(2.0))
    assert model.get_weights()[0].tolist() == [[2], [2]]
    assert model_cache.trained((b"data",), never_called).get_weights()[0].tolist() == [[2], [2]]


def never_called():
    raise AssertionError("it was trained again")


def test_a_model_wanted_by_many_at_once_is_trained_once(cache):
    tensorflow()  # its import is not this test's
    calls, got = [], []

    def train():
        calls.append(1)
        time.sleep(0.2)
        return archive()

    workers = [
        threading.Thread(target=lambda: got.append(model_cache.trained((b"data",), train)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (len(calls), len(got)) == (1, 4)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("QB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_cache.folder() == tmp_path / "qb-cluster"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_cache.folder() == tmp_path / ".cache" / "qb-cluster"
