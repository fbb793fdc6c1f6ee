"""The dataset ``digits``: 1,797 handwritten digits of 8×8 pixels, scikit-learn's own copy.

They are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
UCI, 1998). The split into evaluation and training part is stratified and fixed, so that models
trained on ``training_split`` have never seen what they are judged by.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.errors import PlugInError
from qb_cluster.installation import install_line

BRIGHTEST = 16.0
EVALUATION_EXAMPLES = 797
SPLIT_SEED = 0


def digits() -> dict[str, Any]:
    """Give the evaluation part, and the training part as calibration examples.

    Returns:
        ``inputs`` float32 ``(797, 1, 8, 8)`` in 0 … 1; ``targets`` int64 ``(797,)``, the digit;
        ``ids`` such as ``digits-0007``, by row in scikit-learn's file; ``calibration``, a mapping
        with the ``inputs`` and ``ids`` of the 1,000 training examples.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    images, targets = _load()
    training, evaluation = _split()
    return {
        "inputs": images[evaluation],
        "targets": targets[evaluation],
        "ids": _ids(evaluation),
        "calibration": {"inputs": images[training], "ids": _ids(training)},
    }


def training_split() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Give what models may be trained on.

    Returns:
        Inputs, float32 ``(1000, 1, 8, 8)`` in 0 … 1, and targets, int64 ``(1000,)``.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    images, targets = _load()
    training, _ = _split()
    return images[training], targets[training]


def _load() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PlugInError(
            f"the dataset 'digits' needs scikit-learn: {install_line('digits')}"
        ) from error
    images, targets = load_digits(return_X_y=True)
    return (
        (images / BRIGHTEST).astype(np.float32).reshape(-1, 1, 8, 8),
        targets.astype(np.int64),
    )


@cache
def _split() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the rows of the training and of the evaluation part, each in file order."""
    from sklearn.model_selection import train_test_split

    _, targets = _load()
    training, evaluation = train_test_split(
        np.arange(len(targets)),
        test_size=EVALUATION_EXAMPLES,
        stratify=targets,
        random_state=SPLIT_SEED,
    )
    return np.sort(training), np.sort(evaluation)


def _ids(rows: NDArray[np.intp]) -> NDArray[np.str_]:
    return np.array([f"digits-{row:04d}" for row in rows])
