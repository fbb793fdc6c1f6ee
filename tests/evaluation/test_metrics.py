import numpy as np
import pytest

from qb_cluster.errors import CellError
from qb_cluster.evaluation import comparison
from qb_cluster.evaluation.metrics import accuracy, doubts

RNG = np.random.default_rng(0)
CLASSES = 4
TARGETS = RNG.integers(0, CLASSES, 200)


def scores(predicted, classes=CLASSES):
    return np.eye(classes, dtype=np.float32)[predicted]


def test_accuracy_is_right_where_the_largest_output_is_the_target():
    outputs = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.2]], np.float32)
    assert accuracy(outputs, np.array([1, 2, 2], np.uint8)).tolist() == [1, 0, 1]
    assert accuracy(outputs[:, :2], np.array([True, False, False])).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("outputs", "targets", "why"),
    [
        (np.zeros((3, 1)), np.array([0, 1, 1]), "outputs have 1 column"),
        (np.zeros(3), np.array([0, 1, 1]), "outputs have the shape (3,), not (n, classes)"),
        (np.zeros((3, 2, 5)), np.array([0, 1, 1]), "outputs have the shape (3, 2, 5)"),
        (np.zeros((3, 2)), np.array([0.0, 1.0, 1.0]), "targets are float64 of shape (3,)"),
        (np.zeros((3, 2)), np.array(["a", "b", "b"]), "targets are text of shape (3,)"),
        (np.zeros((3, 2)), np.array(["a", "b", "b"], object), "targets are text of shape (3,)"),
        (np.zeros((3, 2)), np.zeros((3, 2), np.int64), "targets are int64 of shape (3, 2)"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "targets run from 0 to 2"),
        (np.zeros((3, 2)), np.array([-1, 1, 1]), "targets run from -1 to 1"),
        (np.zeros((3, 2)), np.array([1, 2, 3]), "targets run from 1 to 3"),
    ],
)
def test_what_is_no_classification_is_refused_with_what_to_use_instead(outputs, targets, why):
    with pytest.raises(CellError) as caught:
        accuracy(outputs.astype(np.float32), targets)
    assert why in str(caught.value)
    assert "measure: {metric: my_metrics:score} (docs/plugins.md)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_has_learnt_something_leaves_no_doubt():
    predicted = np.where(RNG.random(200) < 0.5, TARGETS, RNG.integers(0, CLASSES, 200))
    assert list(doubts(scores(predicted), TARGETS)) == []


@pytest.mark.parametrize(
    "predicted", [np.full(200, np.bincount(TARGETS).argmax()), (TARGETS + 1) % CLASSES]
)
def test_a_model_at_chance_or_below_is_doubtful(predicted):
    [doubt] = doubts(scores(predicted), TARGETS)
    assert "most frequent class (exact binomial test, one-sided, 5 %, n = 200)" in doubt
    assert f"{(predicted == TARGETS).mean():.1%}" in doubt


@pytest.mark.parametrize(("right", "is_doubtful"), [(58, True), (59, False)])
def test_chance_is_exceeded_from_where_the_binomial_test_says(right, is_doubtful):
    # P(X >= 59 | n = 100, p = 0.5) = 0.044, and 0.067 from 58 on.
    targets = np.arange(100) % 2
    predicted = np.where(np.arange(100) < right, targets, 1 - targets)
    assert bool(list(doubts(scores(predicted, 2), targets))) == is_doubtful


def test_labels_that_count_from_1_are_doubtful():
    first, *_ = doubts(scores(TARGETS), TARGETS + 1)
    assert first == (
        "targets run from 1 to 4 for 4 classes, and accuracy counts classes from 0: subtract 1 in "
        "the dataset"
    )


def test_nothing_is_known_to_be_doubtful_of_a_metric_of_the_users_own():
    constant = scores(np.zeros(200, np.int64))
    assert comparison.doubts(accuracy, constant, TARGETS)
    assert comparison.doubts(lambda outputs, targets: 1.0, constant, TARGETS) == ()
