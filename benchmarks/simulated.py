"""What does simulating quantization cost beside the float forward pass?

Run it alone: ``make bench``. A net of ResNet-18's size, written by hand, with random weights, on
batches of 16 images of 3×64×64 (and not 224×224, to keep it short), one thread. The arms take
turns, in an order that turns around. Limit: 1.5 times float. Weights are rounded once, when the
artifact is made; what an evaluated batch still costs is the rounding of activations.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from qb_cluster.contracts import Arrays, Bits, Calibration, Quantization, Scheme
from qb_pytorch import PyTorchBackend

LIMIT = 1.5
ROUNDS = 15
ARMS = {
    "weight_only w4": (Scheme("weight_only"), Bits(4)),
    "static w8a8": (Scheme("static", "static"), Bits(8, 8)),
    "dynamic w8a8": (Scheme("dynamic", "dynamic"), Bits(8, 8)),
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Take and give feature maps."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.bn2(self.conv2(hidden))
        hidden += images if self.downsample is None else self.downsample(images)
        return self.relu(hidden)


def resnet18() -> nn.Module:
    """Give a net of ResNet-18's layers, 11.7 million parameters, with random weights."""
    torch.manual_seed(0)
    channels = [64, 64, 128, 256, 512]
    blocks = [
        nn.Sequential(
            BasicBlock(channels[i], channels[i + 1], stride=1 if i == 0 else 2),
            BasicBlock(channels[i + 1], channels[i + 1], stride=1),
        )
        for i in range(4)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    ).eval()


def images(count: int, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Give random images, by input name."""
    rng = np.random.default_rng(0)
    return {"input": rng.normal(size=(count, 3, size, size)).astype(np.float32)}


def _executables(inputs: Arrays) -> dict[str, Callable[[Arrays], object]]:
    net, backend = resnet18(), PyTorchBackend()
    example = {name: array[:1] for name, array in inputs.items()}
    baseline = backend.convert(lambda: net, example)
    artifacts = {"float": baseline}
    for name, (scheme, bits) in ARMS.items():
        static = scheme.activations == "static"
        asked = Quantization(scheme, bits, "simulated", Calibration() if static else None)
        calibration = inputs if static else None
        artifacts[name] = backend.quantize(lambda: net, baseline, asked, calibration)
    return {name: backend.open(made, lambda: net, 1) for name, made in artifacts.items()}


def main() -> int:
    """Print the table; the exit code says whether the limit held."""
    inputs = images(16, 64)
    executables = _executables(inputs)
    seconds: dict[str, list[float]] = {name: [] for name in executables}
    for warm in executables.values():
        warm(inputs)
    for turn in range(ROUNDS):
        order = list(executables)[:: 1 if turn % 2 == 0 else -1]
        for name in order:
            began = time.perf_counter()
            executables[name](inputs)
            seconds[name].append(time.perf_counter() - began)
    print(f"16 images of 3×64×64, one thread, median of {ROUNDS} rounds\n")
    print(f"{'':<16}{'ms':>8}{'× float':>10}{'limit':>8}")
    held = True
    for name, samples in seconds.items():
        # Within a round, so that a machine that slows down slows both.
        pairs = zip(samples, seconds["float"], strict=True)
        ratio = statistics.median(own / base for own, base in pairs)
        held = held and ratio <= LIMIT
        limit = "" if name == "float" else f"{LIMIT:.2f}"
        print(f"{name:<16}{1e3 * statistics.median(samples):>8.1f}{ratio:>10.2f}{limit:>8}")
    print("\nevery limit held" if held else "\na limit was missed")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
