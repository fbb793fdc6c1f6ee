"""A net whose layers the kernels take and not."""

import numpy as np
from torch import nn


class ConvEmbedNet(nn.Module):
    """A convolution, an embedding, and linear layers.

    Args:
        width: of the widest one.
    """

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding="same")
        self.embed = nn.Embedding(20, 16)
        self.wide = nn.Linear(16, width)
        self.mix = nn.Linear(width, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, image, ids):
        hidden = self.conv(image).relu().mean((2, 3)) + self.embed(ids).mean(1)
        return self.head(self.mix(self.wide(hidden).relu()).relu())


def images_and_ids():
    """40 examples of its two inputs."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(40, 3, 6, 6)).astype(np.float32),
        "ids": rng.integers(0, 20, (40, 3)),
    }
