"""Training of the ready-made models: from a fixed seed, on one thread, once per user.

One thread, so that the weights do not depend on how many cores a machine has.
"""

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qb_cluster.catalog import model_cache

BATCH = 50

Examples = Callable[[int], tuple[NDArray[Any], NDArray[np.int64]]]
"""Gives inputs and targets of an epoch, counted from 0."""


def trained(
    build: Callable[[], nn.Module],
    examples: Examples,
    *,
    seed: int,
    epochs: int,
    options: Mapping[str, object],
) -> nn.Module:
    """Give a trained classifier, training it only where this user's cache has none.

    Args:
        build: makes the net, untrained.
        examples: of each epoch; there are equally many in all of them.
        seed: of the initial weights and of the order of examples.
        epochs: how many there are.
        options: what else decides the weights, beside the modules where ``build`` and
            ``examples`` are defined.

    Returns:
        In evaluation mode.

    Raises:
        OSError: the cache folder cannot be written.
    """
    inputs, targets = examples(0)
    modules = (build.__module__, examples.__module__, __name__)
    ingredients = (
        inputs.tobytes(),
        targets.tobytes(),
        json.dumps({**options, "seed": seed, "epochs": epochs}, sort_keys=True).encode(),
        *(inspect.getsource(sys.modules[name]).encode() for name in modules),
        torch.__version__.encode(),
    )
    with reproducible(seed):
        net = build()

        def train() -> bytes:
            _train(net, examples, epochs)
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
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch and give it one thread, and leave both as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _train(net: nn.Module, examples: Examples, epochs: int) -> None:
    """Minimize the cross-entropy by Adam under a one-cycle learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    steps = -(-len(examples(0)[1]) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, epochs=epochs, steps_per_epoch=steps
    )
    for epoch in range(epochs):
        inputs, targets = map(torch.from_numpy, examples(epoch))
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
