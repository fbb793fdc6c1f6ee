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


def _filled(layer: Any, weight: torch.Tensor, bias: Sequence[float]) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float32))
    # A model of one layer would be the layer, and torchao replaces layers within a model.
    return nn.Sequential(layer).eval()
