"""The dataset ``digits-32``."""

import numpy as np
import pytest

from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.catalog.digits import digits
from qb_cluster.catalog.digits_32 import digits_32, training_split

pytestmark = pytest.mark.frameworks  # scikit-learn has the digits


@pytest.fixture(scope="module")
def data():
    return digits_32()


def shrunk(images):
    """Average channels, and squares of 4×4 pixels."""
    return images.reshape(-1, 3, 8, 4, 8, 4).mean(axis=(1, 3, 5))


def test_it_has_797_images_of_32_by_32_pixels_in_three_channels(data):
    checked = as_dataset(data, "digits-32")
    for inputs, count in ((checked.inputs, 797), (checked.calibration, 1000)):
        assert inputs["input"].shape == (count, 3, 32, 32)
        assert inputs["input"].dtype == np.float32
        assert (inputs["input"].min(), inputs["input"].max()) == (0, 1)


def test_ids_targets_and_split_are_those_of_the_small_digits(data):
    small = digits()
    np.testing.assert_array_equal(data["ids"], small["ids"])
    np.testing.assert_array_equal(data["targets"], small["targets"])
    np.testing.assert_array_equal(data["calibration"]["ids"], small["calibration"]["ids"])
    assert not set(data["ids"]) & set(data["calibration"]["ids"])


def test_two_calls_give_equal_images(data):
    again = digits_32()
    np.testing.assert_array_equal(data["inputs"], again["inputs"])
    np.testing.assert_array_equal(data["calibration"]["inputs"], again["calibration"]["inputs"])


def test_shrunk_and_without_colour_an_image_is_its_small_digit_again(data):
    small = digits()["inputs"].reshape(-1, 8, 8)
    likeness = [
        np.corrcoef(large.ravel(), own.ravel())[0, 1]
        for large, own in zip(shrunk(data["inputs"]), small, strict=True)
    ]
    assert np.median(likeness) > 0.9
    assert min(likeness) > 0  # the ink is lighter than the paper, never the other way round


def test_every_image_has_colours_of_its_own(data):
    paper = data["inputs"][:, :, 0, :].mean(axis=-1)  # hardly any digit reaches the first row
    assert (paper.std(axis=0) > 0.05).all()
    assert np.ptp(paper, axis=1).mean() > 0.05


def test_calibration_examples_are_those_of_the_first_epoch_of_training(data):
    inputs, targets = training_split()
    np.testing.assert_array_equal(inputs, data["calibration"]["inputs"])
    assert targets.dtype == np.int64


def test_every_epoch_has_the_same_digits_in_other_colours():
    (first, targets), (second, same) = training_split(0), training_split(1)
    np.testing.assert_array_equal(targets, same)
    assert np.abs(first - second).mean() > 0.1
    likeness = np.corrcoef(shrunk(first).ravel(), shrunk(second).ravel())[0, 1]
    assert likeness > 0.5
