"""A classifier of sentences by their words alone, for ``qb_models.docstrings:words``."""

import torch
from torch import nn

from qb_models.docstrings import BUCKETS, TOPICS, word_training
from qb_pytorch.training import trained


def word_bag(*, seed: int = 0, epochs: int = 12, width: int = 64) -> nn.Module:
    """Give a mean of word embeddings (``nn.EmbeddingBag``) and two linear layers.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the training sentences.
        width: of the embeddings.

    Returns:
        In evaluation mode; takes int64 ``(n, 24)``, returns logits ``(n, 8)``, float32.
    """

    def build() -> nn.Module:
        return _WordBag(width)

    return trained(build, word_training, seed=seed, epochs=epochs, options={"width": width})


class _WordBag(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(BUCKETS, width, mode="mean", padding_idx=0)
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, len(TOPICS))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.bag(words))))
