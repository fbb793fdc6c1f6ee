"""The dataset ``digits`` and the two models trained on it."""

import numpy as np
import pytest
import torch

from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.catalog.digits import digits, training_split
from qb_pytorch import digits as models
from qb_pytorch import training

pytestmark = pytest.mark.frameworks


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QB_CACHE", str(tmp_path))
    return tmp_path / "models"


@pytest.fixture
def trainings(monkeypatch):
    """Count how often anything is trained."""
    calls = []
    train = training._train

    def counted(*args):
        calls.append(args)
        train(*args)

    monkeypatch.setattr(training, "_train", counted)
    return calls


def accuracy(model):
    data = digits()
    with torch.no_grad():
        logits = model(torch.from_numpy(data["inputs"])).numpy()
    return np.mean(logits.argmax(axis=1) == data["targets"])


def test_digits_is_a_dataset_whose_calibration_part_is_disjoint_from_evaluation():
    data = as_dataset(digits(), "digits")
    assert data.inputs["input"].shape == (797, 1, 8, 8)
    assert data.inputs["input"].dtype == np.float32
    assert data.targets.dtype == np.int64
    assert len(data.calibration_ids) == 1000
    assert not set(data.ids) & set(data.calibration_ids)
    assert (data.inputs["input"].min(), data.inputs["input"].max()) == (0, 1)


def test_ids_are_rows_of_the_file_of_scikit_learn():
    from sklearn.datasets import load_digits

    file = load_digits()
    data = digits()
    rows = [int(name.removeprefix("digits-")) for name in data["ids"]]
    np.testing.assert_array_equal(data["inputs"].reshape(-1, 64) * 16, file.data[rows])
    np.testing.assert_array_equal(data["targets"], file.target[rows])


def test_every_digit_has_the_same_share_of_training_and_of_evaluation():
    _, training = training_split()
    for digit in range(10):
        shares = [np.mean(part == digit) for part in (training, digits()["targets"])]
        assert abs(shares[0] - shares[1]) < 0.002


def test_training_and_calibration_are_the_same_examples():
    np.testing.assert_array_equal(training_split()[0], digits()["calibration"]["inputs"])


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    from qb_cluster.errors import PlugInError

    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(PlugInError, match=r"pip install .*\[digits\]\""):
        digits()


@pytest.mark.usefixtures("cache")
def test_the_cnn_reads_at_least_98_of_100_digits():
    assert accuracy(models.digits_cnn()) >= 0.98


@pytest.mark.usefixtures("cache")
def test_the_mlp_reads_at_least_96_of_100_digits():
    assert accuracy(models.digits_mlp()) >= 0.96


@pytest.mark.usefixtures("cache")
def test_a_model_comes_in_evaluation_mode_with_plain_float32_weights():
    model = models.digits_mlp(epochs=1)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.usefixtures("cache")
def test_a_second_call_trains_nothing_and_gives_the_same_weights(trainings):
    first, second = models.digits_mlp(epochs=1), models.digits_mlp(epochs=1)
    assert len(trainings) == 1
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


@pytest.mark.usefixtures("cache")
def test_other_options_train_another_model(trainings):
    models.digits_mlp(epochs=1)
    models.digits_mlp(epochs=1, seed=1)
    models.digits_mlp(epochs=1, hidden=32)
    models.digits_cnn(epochs=1)
    assert len(trainings) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle"])
def test_a_damaged_file_is_trained_again(cache, trainings, damage):
    before = models.digits_mlp(epochs=1).state_dict()
    (path,) = cache.glob("*.pt")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "garbage": b"garbage" * 100,
            "pickle": b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00trueuR.",
        }[damage]
    )
    after = models.digits_mlp(epochs=1).state_dict()
    assert len(trainings) == 2
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert len(torch.load(path, weights_only=True)) == len(before)


def test_training_leaves_threads_and_random_numbers_alone(cache, monkeypatch):
    threads = torch.get_num_threads()
    try:
        states = []
        for count in (2, 1):
            monkeypatch.setenv("QB_CACHE", str(cache / str(count)))
            torch.set_num_threads(count)
            random_state = torch.get_rng_state()
            states.append(models.digits_cnn(epochs=1).state_dict())
            assert torch.get_num_threads() == count
            assert torch.equal(torch.get_rng_state(), random_state)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
