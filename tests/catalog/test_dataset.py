from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.contracts import Calibration
from qb_cluster.errors import DataError


def examples(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4))


def test_a_mapping_and_an_object_with_the_same_names_are_the_same_dataset():
    fields = {"inputs": examples(10), "targets": np.arange(10), "ids": np.arange(10)}
    one = as_dataset(fields, "d")
    two = as_dataset(SimpleNamespace(**fields), "d")
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.inputs["input"], two.inputs["input"])


def test_float64_inputs_become_the_float32_that_models_take():
    assert (
        as_dataset({"inputs": examples(5), "targets": np.zeros(5)}, "d").inputs["input"].dtype
        == np.float32
    )


@given(st.integers(1, 60), st.booleans())
def test_held_out_calibration_never_meets_evaluation(count, with_ids):
    fields = {"inputs": examples(count), "targets": np.arange(count)}
    if with_ids:
        fields["ids"] = [f"e{i}" for i in range(count)]
    dataset = as_dataset(fields, "d")
    assert not set(dataset.ids) & set(dataset.calibration_ids)
    assert len(dataset.ids) + len(dataset.calibration_ids) == count
    assert len(dataset.ids) >= 1


def test_copies_of_one_content_fall_on_one_side():
    inputs = np.repeat(examples(10), 5, axis=0)
    dataset = as_dataset({"inputs": inputs, "targets": np.zeros(50)}, "d")
    known = {row.tobytes() for row in dataset.inputs["input"]}
    assert len(dataset.calibration_ids)
    assert not any(row.tobytes() in known for row in dataset.calibration["input"])


def test_calibrating_on_what_one_is_judged_by_is_refused():
    inputs = examples(10)
    with pytest.raises(DataError, match="2 examples are in evaluation and in calibration"):
        as_dataset({"inputs": inputs, "targets": np.zeros(10), "calibration": inputs[3:5]}, "d")


def test_a_leak_is_seen_by_id_and_where_only_one_side_has_ids_by_content():
    inputs, other = examples(10), examples(4, seed=1)
    ids = [f"e{i}" for i in range(10)]
    base = {"inputs": inputs, "targets": np.zeros(10), "ids": ids}
    with pytest.raises(DataError, match="first: e3"):
        as_dataset(base | {"calibration": {"inputs": other, "ids": ["a", "b", "e3", "c"]}}, "d")
    with pytest.raises(DataError, match="1 examples are in"):
        as_dataset(base | {"calibration": inputs[:1]}, "d")
    assert len(as_dataset(base | {"calibration": other}, "d").calibration_ids) == 4


def test_a_sample_is_drawn_by_seed_and_without_replacement():
    dataset = as_dataset(
        {
            "inputs": examples(10),
            "targets": np.zeros(10),
            "calibration": examples(50, seed=1),
        },
        "d",
    )
    one = dataset.calibration_sample(Calibration(samples=20, seed=1))["input"]
    same = dataset.calibration_sample(Calibration(samples=20, seed=1))["input"]
    other = dataset.calibration_sample(Calibration(samples=20, seed=2))["input"]
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(np.unique(one, axis=0)) == 20


def test_a_dataset_of_one_example_evaluates_but_cannot_calibrate():
    dataset = as_dataset({"inputs": examples(1), "targets": [0]}, "d")
    assert len(dataset.ids) == 1
    with pytest.raises(DataError, match="static scheme needs calibration"):
        dataset.calibration_sample(Calibration())


def test_evaluation_keeps_the_first_examples():
    dataset = as_dataset(
        {"inputs": examples(10), "targets": np.arange(10), "calibration": examples(3, 1)}, "d"
    )
    np.testing.assert_array_equal(dataset.evaluation(4).targets, np.arange(4))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"targets": [1]}, "without inputs"),
        ([1, 2], "without inputs and targets"),
        ({"inputs": np.zeros((3, 2)), "targets": [1]}, "one entry an example"),
        ({"inputs": np.zeros((0, 2)), "targets": []}, "no examples"),
        ({"inputs": np.array(["a"]), "targets": [1]}, "numbers"),
        ({"inputs": {"a": np.zeros(2), "b": np.zeros(3)}, "targets": [1, 2]}, "unequal"),
        ({"inputs": np.zeros((2, 1)), "targets": [1, 2], "ids": ["x", "x"]}, "more than one"),
        ({"inputs": np.zeros((2, 1)), "targets": [1, 2], "ids": ["x"]}, "ids of shape"),
        (
            {
                "inputs": {"a": np.zeros((2, 1))},
                "targets": [1, 2],
                "calibration": {"inputs": {"b": np.ones((1, 1))}},
            },
            "calibration has",
        ),
    ],
)
def test_a_dataset_that_breaks_the_contract_is_told_how(raw, message):
    with pytest.raises(DataError, match=message):
        as_dataset(raw, "d")


def test_the_total_counts_what_is_held_out_and_what_is_left_out():
    fields = {"inputs": examples(50), "targets": np.zeros(50)}
    held_out = as_dataset(fields, "d")
    assert len(held_out.ids) < 50
    assert held_out.total == held_out.evaluation(3).total == 50
    own = as_dataset(fields | {"calibration": examples(7) + 100}, "d")
    assert own.total == 57
