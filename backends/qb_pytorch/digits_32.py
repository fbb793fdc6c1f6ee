"""Ready-made models for the dataset ``digits-32``: a ResNet and a MobileNet.

They are trained when first asked for, see ``training``. As their namesakes do on photographs, they
halve the image five times, so that 32×32 pixels end as one and most weights are in the last stages.
One example reads 15 MB of weights or more, and takes at least 0.2 ms on one thread: int8 can win
time even where the CPU has no fast int8 arithmetic (VNNI).
"""

from itertools import pairwise

import torch
from torch import nn

from qb_cluster.catalog.digits_32 import training_split
from qb_pytorch.training import trained

CLASSES = 10
STAGES = 4
EXPANSION = 4


def digits_resnet(*, seed: int = 0, epochs: int = 4, width: int = 64) -> nn.Module:
    """Give a ResNet-10: ResNet-18 with one block per stage, 4,903,242 parameters.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        width: channels of the first of four stages; each has twice as many as the one before it.

    Returns:
        In evaluation mode; takes ``(n, 3, 32, 32)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    options = {"net": "resnet", "width": width}
    return trained(
        lambda: _resnet(width), training_split, seed=seed, epochs=epochs, options=options
    )


def digits_mobilenet(*, seed: int = 0, epochs: int = 5, width: int = 32) -> nn.Module:
    """Give a MobileNetV2 of five inverted residual blocks, 3,733,674 parameters.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        width: channels of the first convolution; four blocks double them.

    Returns:
        In evaluation mode; takes ``(n, 3, 32, 32)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    options = {"net": "mobilenet", "width": width}
    return trained(
        lambda: _mobilenet(width), training_split, seed=seed, epochs=epochs, options=options
    )


class _Residual(nn.Module):
    """Adds what one module makes of the input to what another makes of it."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs) + self.shortcut(inputs)


def _resnet(width: int) -> nn.Sequential:
    widths = [width, *(width * 2**stage for stage in range(STAGES))]
    blocks = [
        layer
        for stage, (inputs, outputs) in enumerate(pairwise(widths))
        for layer in (_basic_block(inputs, outputs, stride=2 if stage else 1), nn.ReLU())
    ]
    return nn.Sequential(
        *_convolution(3, width, size=3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *blocks,
        *_head(widths[-1]),
    )


def _basic_block(inputs: int, outputs: int, stride: int) -> _Residual:
    body = nn.Sequential(
        *_convolution(inputs, outputs, size=3, stride=stride),
        nn.ReLU(),
        *_convolution(outputs, outputs, size=3),
    )
    if (inputs, stride) == (outputs, 1):
        return _Residual(body, nn.Identity())
    return _Residual(body, nn.Sequential(*_convolution(inputs, outputs, size=1, stride=stride)))


def _mobilenet(width: int) -> nn.Sequential:
    widths = [width * 2**block for block in range(STAGES + 1)]
    return nn.Sequential(
        *_convolution(3, width, size=3, stride=2),
        nn.ReLU6(),
        *(_inverted_block(inputs, outputs, stride=2) for inputs, outputs in pairwise(widths)),
        _Residual(_inverted_block(widths[-1], widths[-1], stride=1), nn.Identity()),
        *_convolution(widths[-1], 2 * widths[-1], size=1),
        nn.ReLU6(),
        *_head(2 * widths[-1]),
    )


def _inverted_block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    wide = EXPANSION * inputs
    return nn.Sequential(
        *_convolution(inputs, wide, size=1),
        nn.ReLU6(),
        *_convolution(wide, wide, size=3, stride=stride, groups=wide),
        nn.ReLU6(),
        *_convolution(wide, outputs, size=1),
    )


def _convolution(
    inputs: int, outputs: int, *, size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Give a convolution and the normalization that takes the place of its bias."""
    convolution = nn.Conv2d(
        inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return convolution, nn.BatchNorm2d(outputs)


def _head(inputs: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES)
