"""The Keras models trained on ``digits``, and the cache that keeps them."""

import json

import numpy as np
import pytest

from qb_cluster.errors import PlugInError
from qb_tensorflow import digits as models
from qb_tensorflow import keras_file
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


@pytest.mark.nightly
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
def test_a_damaged_file_is_trained_again(cache, monkeypatch, damage):
    monkeypatch.setattr(models, "_train", lambda _: archive())
    models.digits_keras_mlp()
    (path,) = cache.glob("*.keras")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:500], "empty": b"", "garbage": b"garbage" * 100}[damage])
    monkeypatch.setattr(models, "_train", lambda _: archive(2.0))
    assert models.digits_keras_mlp().get_weights()[0].tolist() == [[2], [2]]
