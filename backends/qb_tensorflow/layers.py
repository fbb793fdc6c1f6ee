"""Keras layers with weights that are quantized: their names, and where output channels lie."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]
Rounding = Callable[[Weights, str], Weights]

_DENSE = ("Dense",)
_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
KINDS = (*_DENSE, *_CONVOLUTIONS, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)


def named_layers(model: Any) -> dict[str, Any]:
    """Give the layers whose weights and inputs are quantized, each once, in order.

    Those inside another layer or model are called ``outer.inner``.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(layer: Any, prefix: str) -> None:
        # Nothing public lists the layers inside a wrapper such as TimeDistributed.
        for child in layer._flatten_layers(include_self=False, recursive=False):  # noqa: SLF001
            if id(child) in seen:
                continue
            seen.add(id(child))
            if type(child).__name__ in KINDS:
                found[prefix + child.name] = child
            visit(child, f"{prefix}{child.name}.")

    visit(model, "")
    return found


def round_weights(layer: Any, name: str, rounding: Rounding) -> int:
    """Round a layer's kernels, and leave its bias.

    Args:
        layer: of one of the ``KINDS``; changed in place.
        name: of the layer, for errors.
        rounding: takes float32 weights of shape (out, in, …), as the reference arithmetic does,
            and the kernel's name; gives the same shape.

    Returns:
        How many parameters were rounded.
    """
    count = 0
    for variable, (forth, back) in _kernels(layer):
        values = np.asarray(variable.value, np.float32)
        variable.assign(back(rounding(forth(values), f"{name}.{variable.name}"), values.shape))
        count += values.size
    return count


def _kernels(layer: Any) -> list[tuple[Any, Any]]:
    """Give each kernel of a layer with the way of its axes to (out, in, …), and back."""
    kind = type(layer).__name__
    if kind in _SEPARABLE:
        return [(layer.depthwise_kernel, _DEPTHWISE_AXES), (layer.pointwise_kernel, _AXES)]
    if kind in _TRANSPOSED:
        return [(layer.kernel, _TRANSPOSED_AXES)]
    return [(layer.kernel, _DEPTHWISE_AXES if kind in _DEPTHWISE else _AXES)]


def _channels_first(weights: Weights) -> Weights:
    """Turn (…, in, out) into (out, in, …)."""
    return np.moveaxis(weights, (-1, -2), (0, 1))


def _channels_last(weights: Weights, _: tuple[int, ...]) -> Weights:
    return np.moveaxis(weights, (0, 1), (-1, -2))


def _transposed_first(weights: Weights) -> Weights:
    """Turn the (…, out, in) of a transposed convolution into (out, in, …)."""
    return np.moveaxis(weights, (-2, -1), (0, 1))


def _transposed_last(weights: Weights, _: tuple[int, ...]) -> Weights:
    return np.moveaxis(weights, (0, 1), (-2, -1))


def _depthwise_first(weights: Weights) -> Weights:
    """Turn (…, in, multiplier) into (in × multiplier, 1, …): each has a filter of its own."""
    *sizes, channels, multiplier = weights.shape
    return np.moveaxis(weights.reshape(*sizes, 1, channels * multiplier), (-1, -2), (0, 1))


def _depthwise_last(weights: Weights, shape: tuple[int, ...]) -> Weights:
    return np.moveaxis(weights, (0, 1), (-1, -2)).reshape(shape)


_AXES = (_channels_first, _channels_last)
_TRANSPOSED_AXES = (_transposed_first, _transposed_last)
_DEPTHWISE_AXES = (_depthwise_first, _depthwise_last)
