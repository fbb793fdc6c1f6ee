"""Metrics for outputs that are more than one row of class scores. Higher is better."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLANK = 0


def mask_iou(outputs: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Give each example's intersection over union of the foreground (class 1).

    Args:
        outputs: class scores of every pixel, ``(n, 2, height, width)``.
        targets: 0 or 1 for every pixel, ``(n, height, width)``.

    Returns:
        In 0 … 1, shape ``(n,)``; 1 where both are empty.
    """
    found, true = outputs.argmax(axis=1) == 1, np.asarray(targets) == 1
    both = (found & true).sum(axis=(1, 2))
    either = (found | true).sum(axis=(1, 2))
    shares: NDArray[np.float64] = np.where(either == 0, 1.0, both / np.maximum(either, 1))
    return shares


def text_read(outputs: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Score 1 where the whole line is read right, by best-path decoding of CTC.

    The best symbol of every step, equal neighbours once, without blanks (Graves et al., 2006,
    "Connectionist Temporal Classification", section 3.2).

    Args:
        outputs: scores of symbols at every step, ``(n, steps, symbols)``; symbol 0 is the blank.
        targets: symbols of the line, then 0, ``(n, longest)``.

    Returns:
        0.0 or 1.0, shape ``(n,)``.
    """
    scores = []
    for path, line in zip(outputs.argmax(axis=2), targets, strict=True):
        changed = np.concatenate(([True], path[1:] != path[:-1]))
        scores.append(np.array_equal(path[changed & (path != BLANK)], line[line != BLANK]))
    return np.array(scores, dtype=np.float64)


def pitch_found(outputs: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Score 1 where the strongest frequency bin at any time is the note that was played.

    Args:
        outputs: strength of frequency bins over time, ``(n, frames, bins)``; 88 keys of a piano,
            each with the same number of bins.
        targets: the key, 0 … 87, shape ``(n,)``.

    Returns:
        0.0 or 1.0, shape ``(n,)``.
    """
    bins = outputs.shape[2] // 88
    found: NDArray[np.bool_] = outputs.max(axis=1).argmax(axis=1) // bins == targets
    return found.astype(np.float64)
