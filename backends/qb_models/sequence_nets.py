"""Models of the next symbol of text, for ``qb_models.docstrings:next_symbol``.

An LSTM, a GRU and a causal transformer. They are trained when first asked for, in seconds; see
``qb_pytorch.training``.
"""

import torch
from torch import nn

from qb_models.docstrings import CONTEXT, SYMBOLS, symbol_training
from qb_pytorch.training import trained


def lstm(*, seed: int = 0, epochs: int = 16, width: int = 96) -> nn.Module:
    """Give a model with one LSTM layer.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: each of 1,000 windows of the training text.
        width: of its state; symbols are embedded in half of it.

    Returns:
        In evaluation mode; takes int64 ``(n, 32)``, returns logits ``(n, 128)``, float32.
    """
    return _trained("lstm", seed, epochs, width)


def gru(*, seed: int = 0, epochs: int = 16, width: int = 96) -> nn.Module:
    """Give a model with one GRU layer; all else as for ``lstm``."""
    return _trained("gru", seed, epochs, width)


def causal_transformer(*, seed: int = 0, epochs: int = 12, width: int = 64) -> nn.Module:
    """Give a decoder-only transformer of two pre-norm blocks; all else as for ``lstm``.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: each of 1,000 windows of the training text.
        width: of its stream; a multiple of 4, the number of heads.
    """
    return _trained("transformer", seed, epochs, width)


def _trained(kind: str, seed: int, epochs: int, width: int) -> nn.Module:
    def build() -> nn.Module:
        match kind:
            case "transformer":
                return _NextSymbol(width, _Decoder(width, blocks=2), width)
            case "lstm":
                return _NextSymbol(width // 2, _Recurrent(nn.LSTM, width // 2, width), width)
            case _:
                return _NextSymbol(width // 2, _Recurrent(nn.GRU, width // 2, width), width)

    options = {"net": kind, "width": width}
    return trained(build, symbol_training, seed=seed, epochs=epochs, options=options)


class _NextSymbol(nn.Module):
    """Embeds symbols, mixes them along time, scores the next; in training at every position."""

    def __init__(self, embedded: int, mixer: nn.Module, mixed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, embedded)
        nn.init.normal_(self.embedding.weight, std=0.1)  # torch's 1 drowns positions
        self.mixer = mixer
        self.head = nn.Linear(mixed, SYMBOLS)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        mixed = self.mixer(self.embedding(symbols))
        if self.training:
            return self.head(mixed).transpose(1, 2)  # classes on axis 1, as cross_entropy has them
        return self.head(mixed[:, -1])


class _Recurrent(nn.Module):
    """The states that a recurrent layer goes through."""

    def __init__(self, layer: type[nn.Module], inputs: int, width: int) -> None:
        super().__init__()
        self.layer = layer(inputs, width, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(inputs)
        return states


class _Decoder(nn.Module):
    """Positions, then blocks, then a normalization (Radford et al., 2019)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(_Block(width, heads=4) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(inputs + self.positions))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self._attention(self.norm_1(stream))
        return stream + self.down(nn.functional.gelu(self.up(self.norm_2(stream))))

    def _attention(self, inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(inputs).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))
