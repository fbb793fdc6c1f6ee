"""Models of a single layer with known weights, to hold kernels against."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def linear(*, weight: Sequence[Any], bias: Sequence[float]) -> Any:
    """Give a Dense layer.

    Args:
        weight: nested lists, ``(outputs, inputs)``.
        bias: length ``outputs``.

    Returns:
        A ``keras.Model``; takes ``(n, inputs)``, returns ``(n, outputs)``, both float32.
    """
    import keras

    kernel = np.array(weight, np.float32).T
    layer = keras.layers.Dense(kernel.shape[1])
    model = keras.Sequential([keras.Input(kernel.shape[:1], name="input"), layer])
    layer.set_weights([kernel, np.array(bias, np.float32)])
    return model


def conv(*, weight: Sequence[Any], bias: Sequence[float]) -> Any:
    """Give a Conv2D layer without padding, for 8 × 8 inputs.

    Args:
        weight: nested lists, ``(outputs, inputs, height, width)``.
        bias: length ``outputs``.

    Returns:
        A ``keras.Model``; takes and returns ``(n, channels, height, width)``, both float32.
    """
    import keras

    kernel = np.array(weight, np.float32).transpose(2, 3, 1, 0)
    layer = keras.layers.Conv2D(kernel.shape[3], kernel.shape[:2])
    model = keras.Sequential(
        [
            keras.Input((kernel.shape[2], 8, 8), name="input"),
            keras.layers.Permute((2, 3, 1)),  # TFLite has channels-last kernels only
            layer,
            keras.layers.Permute((3, 1, 2)),
        ]
    )
    layer.set_weights([kernel, np.array(bias, np.float32)])
    return model


def conv_transpose(*, weight: Sequence[Any], bias: Sequence[float]) -> Any:
    """Give a Conv2DTranspose layer whose stride is its kernel, for 8 × 8 inputs.

    Args:
        weight: nested lists, ``(inputs, outputs, height, width)``.
        bias: length ``outputs``.

    Returns:
        A ``keras.Model``; takes and returns ``(n, channels, height, width)``, both float32.
    """
    import keras

    kernel = np.array(weight, np.float32).transpose(2, 3, 1, 0)
    layer = keras.layers.Conv2DTranspose(kernel.shape[2], kernel.shape[:2], kernel.shape[:2])
    model = keras.Sequential(
        [
            keras.Input((kernel.shape[3], 8, 8), name="input"),
            keras.layers.Permute((2, 3, 1)),
            layer,
            keras.layers.Permute((3, 1, 2)),
        ]
    )
    layer.set_weights([kernel, np.array(bias, np.float32)])
    return model


def embedding(*, weight: Sequence[Any]) -> Any:
    """Give an Embedding, for 8 ids.

    Args:
        weight: nested lists, ``(rows, width)``.

    Returns:
        A ``keras.Model``; takes int64 ``(n, 8)``, returns float32 ``(n, 8, width)``.
    """
    import keras

    table = np.array(weight, np.float32)
    layer = keras.layers.Embedding(*table.shape)
    model = keras.Sequential([keras.Input((8,), dtype="int64", name="input"), layer])
    layer.set_weights([table])
    return model
