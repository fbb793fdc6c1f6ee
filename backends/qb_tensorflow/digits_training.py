"""Training of the digits models: a program, since TensorFlow's threads are a process's own.

With one thread, seeded initial weights and a seeded order of examples the weights do not depend
on how many cores a machine has.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qb_cluster.catalog.digits import training_split
from qb_tensorflow import framework, keras_file

BATCH = 50
CLASSES = 10
PEAK_LEARNING_RATE = 5e-3
WARM_UP = 0.2
"""Share of the steps in which the learning rate rises; it falls with a cosine in the others."""


def train(net: str, seed: int, epochs: int, width: int) -> Any:
    """Minimize the cross-entropy by AdamW; gives the ``keras.Model``."""
    framework.use_threads(1)
    import keras

    inputs, targets = training_split()
    model = keras.Sequential(
        [keras.Input((1, 8, 8)), *(_cnn if net == "cnn" else _mlp)(width)], name=net
    )
    for index, layer in enumerate(model.layers):
        if hasattr(layer, "kernel"):
            layer.kernel.assign(_glorot(keras, layer, seed, index))
    steps = epochs * -(-len(inputs) // BATCH)
    rise = int(WARM_UP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        PEAK_LEARNING_RATE / 25,
        steps - rise,
        warmup_target=PEAK_LEARNING_RATE,
        warmup_steps=rise,
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        rows = order.permutation(len(inputs))
        for batch in np.split(rows, range(BATCH, len(rows), BATCH)):
            model.train_on_batch(inputs[batch], targets[batch])
    return model


def _glorot(keras: Any, layer: Any, seed: int, index: int) -> Any:
    """Give initial weights that depend on the seed and the layer's place alone."""
    return keras.initializers.GlorotUniform(seed=1000 * seed + index)(layer.kernel.shape)


def _cnn(channels: int) -> list[Any]:
    from keras import layers

    return [
        layers.Permute((2, 3, 1), name="channels_last"),  # the dataset's images are channels-first
        layers.Conv2D(channels, 3, padding="same", activation="relu", name="conv1"),
        layers.Conv2D(2 * channels, 3, padding="same", activation="relu", name="conv2"),
        layers.MaxPooling2D(name="pool"),
        layers.Flatten(name="flatten"),
        layers.Dense(64, activation="relu", name="hidden"),
        layers.Dense(CLASSES, name="head"),
    ]


def _mlp(hidden: int) -> list[Any]:
    from keras import layers

    return [
        layers.Flatten(name="flatten"),
        layers.Dense(hidden, activation="relu", name="hidden1"),
        layers.Dense(hidden // 2, activation="relu", name="hidden2"),
        layers.Dense(CLASSES, name="head"),
    ]


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(keras_file.dump(train(**json.loads(sys.argv[1]))))
