"""Metrics of outputs that are more than a row of class scores."""

import numpy as np
import pytest

from qb_models.metrics import mask_iou, pitch_found, text_read


def scores_of(classes, count):
    """One-hot scores, the classes on axis 1."""
    return np.moveaxis(np.eye(count, dtype=np.float32)[np.array(classes)], -1, 1)


def test_the_overlap_of_masks_is_counted_in_pixels():
    found = scores_of([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]], 2)
    true = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 0]]])
    assert mask_iou(found, true) == pytest.approx([1 / 3, 1, 0])


@pytest.mark.parametrize(
    ("path", "line", "right"),
    [
        ([0, 3, 3, 0, 5, 0], [3, 5, 0, 0], 1),
        ([3, 3, 0, 3, 3, 5], [3, 3, 5, 0], 1),  # a blank parts equal letters
        ([3, 3, 3, 3, 3, 5], [3, 3, 5, 0], 0),
        ([3, 3, 5, 5, 5, 5], [3, 5, 5, 0], 0),
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0], 1),
    ],
)
def test_a_line_counts_when_every_letter_of_its_best_path_is_right(path, line, right):
    outputs = np.eye(8, dtype=np.float32)[None, path]
    assert text_read(outputs, np.array([line])).tolist() == [right]


@pytest.mark.parametrize("bins", [1, 3])
def test_a_note_is_found_where_any_frame_has_the_strongest_bin(bins):
    outputs = np.zeros((2, 5, 88 * bins), np.float32)
    outputs[:, 1, 10 * bins] = 0.5
    outputs[:, 3, 40 * bins + bins - 1] = 0.9
    assert pitch_found(outputs, np.array([40, 10])).tolist() == [1, 0]
