"""A net with two inputs and two outputs, and its dataset: pairs of digits, their sum and order."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qb_cluster.catalog import digits
from qb_pytorch.training import trained

SUMS = 19
EVALUATION_PAIRS = 512
TRAINING_PAIRS = 2000


def pairs() -> dict[str, Any]:
    """Give pairs of digits and their sums.

    Returns:
        ``inputs``: ``left`` and ``right``, float32 ``(512, 1, 8, 8)`` in 0 … 1; ``targets`` int64
        ``(512,)``, the sum of the two; ``calibration``: pairs of training digits.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    data = digits.digits()
    left, right = _drawn(len(data["targets"]), EVALUATION_PAIRS, seed=0)
    training, _ = digits.training_split()
    first, second = _drawn(len(training), EVALUATION_PAIRS, seed=1)
    return {
        "inputs": {"left": data["inputs"][left], "right": data["inputs"][right]},
        "targets": data["targets"][left] + data["targets"][right],
        "ids": [f"evaluation-{row:03d}" for row in range(EVALUATION_PAIRS)],
        "calibration": {
            "inputs": {"left": training[first], "right": training[second]},
            "ids": [f"training-{row:03d}" for row in range(EVALUATION_PAIRS)],
        },
    }


def adder(*, seed: int = 0, epochs: int = 12, width: int = 16) -> nn.Module:
    """Give a net that reads two images with one tower, and scores their sum and their order.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: each of 2,000 pairs of training digits.
        width: channels of its first convolution.

    Returns:
        In evaluation mode; takes ``left`` and ``right``, each ``(n, 1, 8, 8)``, and returns a tuple
        of logits: of the sum, ``(n, 19)``, and of whether the left is larger, ``(n, 2)``.

    Raises:
        PlugInError: scikit-learn is not installed.
    """

    def build() -> nn.Module:
        return _Jointly(_Adder(width))

    return trained(build, _training, seed=seed, epochs=epochs, options={"width": width}).adder


def _drawn(available: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = np.random.default_rng(seed).integers(available, size=(2, count))
    return left, right


def _training(epoch: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Give pairs ``(2000, 2, 1, 8, 8)`` and, as one number, sum and order: ``2 sum + order``."""
    images, values = digits.training_split()
    left, right = _drawn(len(values), TRAINING_PAIRS, seed=2 + epoch)
    larger = (values[left] > values[right]).astype(np.int64)
    stacked = np.stack([images[left], images[right]], axis=1)
    return stacked, 2 * (values[left] + values[right]) + larger


class _Adder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.joined = nn.Linear(2 * 2 * width * 4 * 4, 128)
        self.sum = nn.Linear(128, SUMS)
        self.order = nn.Linear(128, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([self.tower(left), self.tower(right)], dim=1)
        joined = torch.relu(self.joined(both))
        return self.sum(joined), self.order(joined)


class _Jointly(nn.Module):
    """Scores sum and order as one class of 38, so that one loss trains both heads.

    The logit of a pair of classes is the sum of theirs, so that its cross-entropy is the sum of the
    two heads' cross-entropies.
    """

    def __init__(self, adder: _Adder) -> None:
        super().__init__()
        self.adder = adder

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        total, order = self.adder(pairs[:, 0], pairs[:, 1])
        return (total[:, :, None] + order[:, None, :]).flatten(1)
