"""Ready-made models: a CNN and an MLP for the dataset ``digits``, trained when first asked for.

Training takes seconds, see ``training``.
"""

from collections.abc import Callable

from torch import nn

from qb_cluster.catalog.digits import training_split
from qb_pytorch.training import trained

CLASSES = 10


def digits_cnn(*, seed: int = 0, epochs: int = 40, channels: int = 16) -> nn.Module:
    """Give a CNN of two convolutions and two linear layers, 38,282 parameters.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        channels: of the first convolution; the second has twice as many.

    Returns:
        In evaluation mode; takes ``(n, 1, 8, 8)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    options = {"net": "cnn", "channels": channels}
    return _trained(lambda: _cnn(channels), seed, epochs, options)


def digits_mlp(*, seed: int = 0, epochs: int = 40, hidden: int = 128) -> nn.Module:
    """Give an MLP of three linear layers, 17,226 parameters.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        hidden: width of the first hidden layer; the second is half as wide.

    Returns:
        In evaluation mode; takes ``(n, 1, 8, 8)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed.
    """
    options = {"net": "mlp", "hidden": hidden}
    return _trained(lambda: _mlp(hidden), seed, epochs, options)


def _cnn(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def _mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(8 * 8, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden // 2),
        nn.ReLU(),
        nn.Linear(hidden // 2, CLASSES),
    )


def _trained(
    build: Callable[[], nn.Module], seed: int, epochs: int, options: dict[str, object]
) -> nn.Module:
    examples = training_split()
    return trained(build, lambda _: examples, seed=seed, epochs=epochs, options=options)
