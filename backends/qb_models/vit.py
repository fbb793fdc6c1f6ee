"""A vision transformer for the dataset ``digits``, written three ways with the same weights.

What quantizes one way may stay float in another: plain ``nn.Linear`` layers and products,
``scaled_dot_product_attention``, and ``nn.MultiheadAttention``, which holds its weights itself.
It is trained once, when first asked for; see ``qb_pytorch.training``.
"""

import math

import torch
from torch import nn

from qb_cluster.catalog.digits import training_split
from qb_pytorch.training import trained

CLASSES = 10
PATCH = 2
PATCHES = 16
DEPTH = 3
HEADS = 4


def linears(*, seed: int = 0, epochs: int = 20, width: int = 64) -> nn.Module:
    """Give a ViT whose attention is linear layers, two products and a softmax.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        width: of its stream; a multiple of 4, the number of heads.

    Returns:
        In evaluation mode; takes ``(n, 1, 8, 8)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    data = training_split()

    def build() -> nn.Module:
        return _ViT(width, _Products)

    options = {"width": width}
    return trained(build, lambda _: data, seed=seed, epochs=epochs, options=options)


def fused(*, seed: int = 0, epochs: int = 20, width: int = 64) -> nn.Module:
    """Give the same function by ``scaled_dot_product_attention``; all else as for ``linears``."""
    net = _ViT(width, _Fused)
    net.load_state_dict(linears(seed=seed, epochs=epochs, width=width).state_dict())
    return net.eval()


def multihead(*, seed: int = 0, epochs: int = 20, width: int = 64) -> nn.Module:
    """Give the same function by ``nn.MultiheadAttention``; all else as for ``linears``."""
    weights = linears(seed=seed, epochs=epochs, width=width).state_dict()
    for block in range(DEPTH):
        inner = f"blocks.{block}.attention"
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{inner}.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"{inner}.multihead.in_proj_{kind}"] = torch.cat(parts)
            weights[f"{inner}.multihead.out_proj.{kind}"] = weights.pop(f"{inner}.out.{kind}")
    net = _ViT(width, _Multihead)
    net.load_state_dict(weights)
    return net.eval()


class _ViT(nn.Module):
    """Patches, positions, pre-norm blocks, the mean of patches (Dosovitskiy et al., 2020)."""

    def __init__(self, width: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(PATCHES, width))
        self.blocks = nn.Sequential(*(_Block(width, attention) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(stream)).mean(dim=1))


class _Block(nn.Module):
    def __init__(self, width: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = attention(width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self.attention(self.norm_1(stream))
        return stream + self.down(nn.functional.gelu(self.up(self.norm_2(stream))))


class _Products(nn.Module):
    """Attention as it is written in papers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(inputs).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return self.out(self._mixed(query, key, value).transpose(1, 2).flatten(2))

    def _mixed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Mix values, all ``(n, heads, patches, width of a head)``."""
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return scores.softmax(dim=-1) @ value


class _Fused(_Products):
    def _mixed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value)


class _Multihead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.multihead = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.multihead(inputs, inputs, inputs, need_weights=False)
        return mixed
