"""The dataset ``digits-32``: the digits of ``digits``, enlarged to 32×32 pixels, coloured, noisy.

It holds no more handwriting than ``digits`` does: each image of 8×8 pixels is enlarged by bilinear
interpolation, drawn in a light colour on a dark one, and covered with noise. Colours and noise are
drawn from fixed seeds. They are strong enough that the demo's nets err on a few percent of the
examples, so that a quantized net has something to lose.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qb_cluster.catalog import digits as small

FACTOR: Final = 4
DARKEST_INK: Final = 0.5
"""The ink's channels are above it, the paper's below."""
NOISE: Final = 0.22
"""Standard deviation of the noise, drawn for every pixel and channel."""
EVALUATION_SEED: Final = 0
TRAINING_SEED: Final = 1


def digits_32() -> dict[str, Any]:
    """Give the evaluation part, and the training part as calibration examples.

    Returns:
        ``inputs`` float32 ``(797, 3, 32, 32)`` in 0 … 1; ``targets`` int64 ``(797,)``, the digit;
        ``ids`` as in ``digits``; ``calibration``, a mapping with the ``inputs`` and ``ids`` of
        the 1,000 training examples, as they look in the first epoch.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    data = small.digits()
    calibration = data["calibration"]
    return {
        **data,
        "inputs": _drawn(data["inputs"], EVALUATION_SEED),
        "calibration": {
            **calibration,
            "inputs": _drawn(calibration["inputs"], TRAINING_SEED),
        },
    }


def training_split(epoch: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Give what models may be trained on; each epoch has the same digits in other colours.

    Args:
        epoch: counted from 0; it decides colours and noise.

    Returns:
        Inputs, float32 ``(1000, 3, 32, 32)`` in 0 … 1, and targets, int64 ``(1000,)``.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    images, targets = small.training_split()
    return _drawn(images, TRAINING_SEED + epoch), targets


def _drawn(images: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Enlarge images ``(n, 1, 8, 8)`` of 0 (paper) … 1 (ink), colour them and add noise."""
    rng = np.random.default_rng(seed)
    large = ndimage.zoom(images, (1, 1, FACTOR, FACTOR), order=1, mode="nearest", grid_mode=True)
    colours = rng.random((2, len(images), 3, 1, 1), dtype=np.float32)
    paper, ink = colours[0] * DARKEST_INK, 1 - colours[1] * (1 - DARKEST_INK)
    noise = rng.standard_normal((*paper.shape[:2], *large.shape[2:]), dtype=np.float32)
    noisy: NDArray[np.float32] = paper + (ink - paper) * large + NOISE * noise
    return noisy.clip(0, 1)
