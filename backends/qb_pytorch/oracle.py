"""Models of a single layer with known weights, to hold kernels against."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def linear(*, weight: Sequence[Any], bias: Sequence[float]) -> nn.Module:
    """Give a Linear layer.

    Args:
        weight: nested lists, ``(outputs, inputs)``.
        bias: length ``outputs``.

    Returns:
        In evaluation mode; takes ``(n, inputs)``, returns ``(n, outputs)``, both float32.
    """
    values = torch.tensor(weight, dtype=torch.float32)
    return _filled(nn.Linear(values.shape[1], values.shape[0]), values, bias)


def conv(*, weight: Sequence[Any], bias: Sequence[float]) -> nn.Module:
    """Give a Conv2d layer without padding.

    Args:
        weight: nested lists, ``(outputs, inputs, height, width)``.
        bias: length ``outputs``.

    Returns:
        In evaluation mode; takes and returns ``(n, channels, height, width)``, both float32.
    """
    values = torch.tensor(weight, dtype=torch.float32)
    outputs, inputs, *kernel = values.shape
    return _filled(nn.Conv2d(inputs, outputs, tuple(kernel)), values, bias)


def conv_transpose(*, weight: Sequence[Any], bias: Sequence[float]) -> nn.Module:
    """Give a ConvTranspose2d layer whose stride is its kernel.

    Args:
        weight: nested lists, ``(inputs, outputs, height, width)``.
        bias: length ``outputs``.

    Returns:
        In evaluation mode; takes and returns ``(n, channels, height, width)``, both float32.
    """
    values = torch.tensor(weight, dtype=torch.float32)
    inputs, outputs, *kernel = values.shape
    layer = nn.ConvTranspose2d(inputs, outputs, tuple(kernel), stride=tuple(kernel))
    return _filled(layer, values, bias)


def embedding(*, weight: Sequence[Any]) -> nn.Module:
    """Give an Embedding.

    Args:
        weight: nested lists, ``(rows, width)``.

    Returns:
        In evaluation mode; takes int64 ``(n, ids)``, returns float32 ``(n, ids, width)``.
    """
    values = torch.tensor(weight, dtype=torch.float32)
    return nn.Sequential(nn.Embedding.from_pretrained(values)).eval()


def recurrent(*, weight: Sequence[Any], recurrent: Sequence[Any]) -> nn.Module:
    """Give an LSTM layer without biases.

    Args:
        weight: nested lists, ``(4 × width, inputs)``.
        recurrent: nested lists, ``(4 × width, width)``.

    Returns:
        In evaluation mode; takes ``(n, steps, inputs)``, returns the last state ``(n, width)``,
        both float32.
    """
    return _LastState(torch.tensor(weight), torch.tensor(recurrent)).eval()


def attention(*, weight: Sequence[Any], out: Sequence[Any]) -> nn.Module:
    """Give a MultiheadAttention of four heads, without biases, that attends to its input.

    Args:
        weight: nested lists, ``(3 × width, width)``, of query, key and value.
        out: nested lists, ``(width, width)``.

    Returns:
        In evaluation mode; takes and returns ``(n, tokens, width)``, both float32.
    """
    return _SelfAttention(torch.tensor(weight), torch.tensor(out)).eval()


class _LastState(nn.Module):
    def __init__(self, weight: torch.Tensor, recurrent: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.LSTM(weight.shape[1], recurrent.shape[1], bias=False, batch_first=True)
        self.layer.load_state_dict({"weight_ih_l0": weight, "weight_hh_l0": recurrent})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(inputs)
        return states[:, -1]


class _SelfAttention(nn.Module):
    def __init__(self, weight: torch.Tensor, out: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(len(out), 4, bias=False, batch_first=True)
        self.layer.load_state_dict({"in_proj_weight": weight, "out_proj.weight": out})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.layer(inputs, inputs, inputs, need_weights=False)
        return mixed


def _filled(layer: Any, weight: torch.Tensor, bias: Sequence[float]) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    # A model of one layer would be the layer, and torchao replaces layers within a model.
    return nn.Sequential(layer).eval()
