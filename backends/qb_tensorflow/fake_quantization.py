"""Quantizing and dequantizing the inputs of Keras layers in float: simulated activations."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qb_cluster.contracts import Arrays, Quantization
from qb_cluster.quantization.affine import affine_qparams, symmetric_limit, symmetric_qparams
from qb_cluster.quantization.observers import make_observer
from qb_tensorflow import keras_file
from qb_tensorflow.feeding import feed
from qb_tensorflow.framework import tensorflow
from qb_tensorflow.layers import named_layers

CALIBRATION_BATCH = 64

Look = Callable[[Any], Any]


def attach(model: Any, activations: Mapping[str, Mapping[str, Any]]) -> None:
    """Make layers round their inputs.

    Args:
        model: changed in place.
        activations: plain values, as an artifact stores them, by the layer's name: ``cast``, a
            dtype; or ``bits`` and ``scale`` and ``zero_point``; or ``bits`` and ``symmetric``,
            where each example's own range is used.
    """
    layers = named_layers(model)
    for name, how in activations.items():
        _before(layers[name], _rounding(how))


def static_activations(
    model: Any, quantization: Quantization, examples: Arrays, bits: Mapping[str, int]
) -> dict[str, Any]:
    """Fix the ranges of layers' inputs on calibration examples.

    Args:
        model: float; it keeps the observers, so pass one of your own.
        quantization: with its calibration.
        examples: inputs by name, examples along axis 0.
        bits: of the inputs of each layer to look at, by its name.

    Returns:
        What ``attach`` takes.

    Raises:
        DataError: there are no examples.
        NonFiniteError: an input is NaN or infinite.
    """
    assert quantization.calibration is not None
    symmetric = quantization.scheme.symmetric_activations
    observers = {
        name: make_observer(quantization.calibration, width, symmetric=symmetric)
        for name, width in bits.items()
    }
    layers = named_layers(model)
    for name, observer in observers.items():
        _before(layers[name], _observing(observer))
    fed = feed(keras_file.input_specs(model), examples)
    for start in range(0, len(next(iter(fed.values()))), CALIBRATION_BATCH):
        stop = start + CALIBRATION_BATCH
        keras_file.call(model, {name: values[start:stop] for name, values in fed.items()})
    qparams = symmetric_qparams if symmetric else affine_qparams
    found = {}
    for name, width in bits.items():
        scale, zero_point = qparams(*observers[name].range(), width)
        found[name] = {"bits": width, "scale": scale, "zero_point": zero_point}
    return found


def _before(layer: Any, look: Look) -> None:
    """Let a function look at, and change, what the layer is called with."""
    call = layer.call

    def changed(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return call(look(inputs), *args, **kwargs)

    layer.call = changed


def _observing(observer: Any) -> Look:
    def observe(inputs: Any) -> Any:
        observer.update(np.asarray(inputs))
        return inputs

    return observe


def _rounding(how: Mapping[str, Any]) -> Look:
    tf = tensorflow()
    if "cast" in how:
        largest = tf.as_dtype(how["cast"]).max
        return lambda inputs: tf.cast(
            tf.cast(tf.clip_by_value(inputs, -largest, largest), how["cast"]), inputs.dtype
        )
    levels = 2 ** how["bits"] - 1
    if "scale" in how:
        return lambda inputs: _round(tf, inputs, how["scale"], how["zero_point"], levels)
    qparams = _symmetric if how["symmetric"] else _affine
    return lambda inputs: _round(tf, inputs, *qparams(tf, inputs, how["bits"]), levels)


def _round(tf: Any, inputs: Any, scale: Any, zero_point: Any, levels: int) -> Any:
    """Do what ``qb_cluster.quantization.affine.quantize_dequantize_affine`` does."""
    integers = tf.clip_by_value(tf.round(inputs / scale) + zero_point, 0.0, float(levels))
    return (integers - zero_point) * scale


def _affine(tf: Any, inputs: Any, bits: int) -> tuple[Any, Any]:
    """Do what ``affine_qparams`` does, for each example."""
    levels = 2**bits - 1
    axes = list(range(1, len(inputs.shape)))
    low = tf.minimum(tf.reduce_min(inputs, axes, keepdims=True), 0.0)
    high = tf.maximum(tf.reduce_max(inputs, axes, keepdims=True), 0.0)
    scale = _usable(tf, (high - low) / levels)
    return scale, tf.clip_by_value(tf.round(-low / scale), 0.0, float(levels))


def _symmetric(tf: Any, inputs: Any, bits: int) -> tuple[Any, Any]:
    """Do what ``symmetric_qparams`` does, for each example."""
    axes = list(range(1, len(inputs.shape)))
    largest = tf.reduce_max(tf.abs(inputs), axes, keepdims=True)
    return _usable(tf, largest / symmetric_limit(bits)), float(2 ** (bits - 1))


def _usable(tf: Any, scale: Any) -> Any:
    return tf.where(scale < np.finfo(np.float32).tiny, tf.ones_like(scale), scale)
