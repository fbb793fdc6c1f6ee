"""Small nets for the dataset ``digits``, each with one kind of layer that its others lack.

They take ``(n, 1, 8, 8)`` and return logits ``(n, 10)``, both float32, as those of ``digits`` do,
and are trained in seconds when first asked for. ``qb backends --check`` runs them.
"""

from collections.abc import Callable

import torch
from torch import nn

from qb_cluster.catalog.digits import training_split
from qb_pytorch.digits import CLASSES
from qb_pytorch.training import trained

WIDTH = 32
LEVELS = 16
"""Shades of grey, which the embedding has a row for each of."""


def embedding(*, seed: int = 0) -> nn.Module:
    """Give a net that looks pixels up in a table.

    Args:
        seed: of the initial weights and of the order of examples.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    return _trained("embedding", _Looked, seed)


def conv_transpose(*, seed: int = 0) -> nn.Module:
    """Give a net that shrinks the image and enlarges it again; all else as for ``embedding``."""
    return _trained("conv_transpose", _enlarged, seed)


def recurrent(*, seed: int = 0) -> nn.Module:
    """Give an LSTM over the rows of the image; all else as for ``embedding``."""
    return _trained("recurrent", lambda: _Rows(nn.LSTM(8, WIDTH, batch_first=True)), seed)


def attention(*, seed: int = 0) -> nn.Module:
    """Give attention among the rows of the image; all else as for ``embedding``."""
    return _trained("attention", lambda: _Rows(_Attention()), seed)


def _trained(kind: str, build: Callable[[], nn.Module], seed: int) -> nn.Module:
    examples = training_split()
    return trained(build, lambda _: examples, seed=seed, epochs=10, options={"kind": kind})


class _Looked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LEVELS + 1, WIDTH)
        self.head = nn.Linear(WIDTH * 8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Cut in the middle between shades, so that a rounded image has the same ones.
        shades = (images[:, 0] * LEVELS + 0.5).long().clamp(0, LEVELS)
        rows = self.table(shades).mean(dim=2)
        return self.head(torch.relu(rows.flatten(1)))


class _Rows(nn.Module):
    """A layer that mixes rows, and a head on all that comes out."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.head = nn.Linear(WIDTH * 8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.mixer(images[:, 0])
        return self.head(mixed.flatten(1))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(8, WIDTH)
        self.layer = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        wide = self.widen(rows)
        mixed, _ = self.layer(wide, wide, wide, need_weights=False)
        return torch.relu(wide + mixed), None


def _enlarged() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 32, 2, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, CLASSES),
    )
