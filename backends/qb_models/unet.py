"""A U-Net with transposed convolutions that finds the ink of noisy digits, and their dataset."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from qb_cluster.catalog import digits, digits_32
from qb_pytorch.training import trained

FACTOR = digits_32.FACTOR
INK = 0.5


def ink() -> dict[str, Any]:
    """Give the images of ``digits-32``, and which of their pixels are ink.

    Returns:
        ``inputs`` float32 ``(256, 3, 32, 32)``; ``targets`` int64 ``(256, 32, 32)``, 1 where the
        digit is; ``ids``; ``calibration``: as of ``digits-32``.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    count = 256
    noisy = digits_32.digits_32()
    return {
        "inputs": noisy["inputs"][:count],
        "targets": _masks(digits.digits()["inputs"][:count]),
        "ids": noisy["ids"][:count],
        "calibration": noisy["calibration"],
    }


def unet(*, seed: int = 0, epochs: int = 3, width: int = 16) -> nn.Module:
    """Give a U-Net of two levels.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        width: channels of the upper level; the lower ones have twice and four times as many.

    Returns:
        In evaluation mode; takes ``(n, 3, 32, 32)``, returns logits ``(n, 2, 32, 32)`` of paper
        and ink, both float32.

    Raises:
        PlugInError: scikit-learn is not installed.
    """

    def build() -> nn.Module:
        return _UNet(width)

    return trained(build, _training, seed=seed, epochs=epochs, options={"width": width})


def _training(epoch: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, _ = digits_32.training_split(epoch)
    return images, _masks(digits.training_split()[0])


def _masks(images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Enlarge clean images ``(n, 1, 8, 8)`` as ``digits-32`` does, and cut them at half ink."""
    large = ndimage.zoom(images, (1, 1, FACTOR, FACTOR), order=1, mode="nearest", grid_mode=True)
    return (large[:, 0] > INK).astype(np.int64)


class _UNet(nn.Module):
    """Down, down, up, up, with each level's features beside what comes up (Ronneberger, 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upper = _convolutions(3, width)
        self.lower = _convolutions(width, 2 * width)
        self.bottom = _convolutions(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.rise_1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join_1 = _convolutions(4 * width, 2 * width)
        self.rise_2 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join_2 = _convolutions(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        upper = self.upper(images)
        lower = self.lower(self.pool(upper))
        risen = self.rise_1(self.bottom(self.pool(lower)))
        joined = self.join_1(torch.cat([risen, lower], dim=1))
        return self.head(self.join_2(torch.cat([self.rise_2(joined), upper], dim=1)))


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
