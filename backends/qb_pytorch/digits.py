"""Ready-made models: a CNN and an MLP for the dataset ``digits``, trained when first asked for.

Training takes seconds, starts from a fixed seed and uses one thread, so that the weights do not
depend on how many cores a machine has.
"""

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn

from qb_cluster.catalog import model_cache
from qb_cluster.catalog.digits import training_split

BATCH = 50
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
    options = {"net": "cnn", "seed": seed, "epochs": epochs, "channels": channels}
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
    options = {"net": "mlp", "seed": seed, "epochs": epochs, "hidden": hidden}
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
    build: Callable[[], nn.Sequential],
    seed: int,
    epochs: int,
    options: dict[str, object],
) -> nn.Module:
    inputs, targets = training_split()
    ingredients = (
        inputs.tobytes(),
        targets.tobytes(),
        json.dumps(options, sort_keys=True).encode(),
        inspect.getsource(sys.modules[__name__]).encode(),
        torch.__version__.encode(),
    )
    with _reproducible(seed):
        net = build()

        def train() -> bytes:
            _train(net, torch.from_numpy(inputs), torch.from_numpy(targets), epochs)
            file = io.BytesIO()
            torch.save(net.state_dict(), file)
            return file.getvalue()

        net.load_state_dict(model_cache.trained(ingredients, "pt", train, _read))
    return net.eval()


def _read(content: bytes) -> dict[str, torch.Tensor] | None:
    """Read a state; ``None`` for a damaged one."""
    try:
        state: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # the reader has no error of its own for damaged files, but five others
        return None
    return state


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch and give it one thread, and leave both as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _train(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epochs: int) -> None:
    """Minimize the cross-entropy by Adam under a one-cycle learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    steps = -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, epochs=epochs, steps_per_epoch=steps
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
