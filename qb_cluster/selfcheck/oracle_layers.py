"""Layers with known weights, and how NumPy computes them: one of each kind that schemes cover."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Bits, LoadModel, Ref, Scheme
from qb_cluster.contracts.coverage import LayerKind
from qb_cluster.quantization.weights import quantize_dequantize_weights

EXAMPLES: Final = 256
HEADS: Final = 4

Array = NDArray[np.float32]
Outputs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OracleLayer:
    """A layer with known weights, its inputs, and how NumPy computes it.

    Attributes:
        kind: of the layer, and the name of the function that makes a model of it.
        weights: by the name of that function's option; float32.
        inputs: examples along axis 0; int64 for an embedding, else float32.
        compute: inputs and weights to outputs, without the bias, in float64.
        bias: broadcastable against the outputs; ``None`` where the layer has none.
        axis: of output channels, in every weight.
        has_one_input: whether all activations that a scheme may round are the inputs and the
            outputs; layers that multiply within themselves are held by their weights alone.
    """

    kind: LayerKind
    weights: dict[str, Array]
    inputs: NDArray[Any]
    compute: Callable[..., Outputs]
    bias: Array | None = None
    axis: int = 0
    has_one_input: bool = True

    @property
    def exact(self) -> Outputs:
        """What the float layer gives."""
        return self.outputs(self.inputs, self.weights)

    def outputs(self, inputs: NDArray[Any], weights: dict[str, Array]) -> Outputs:
        """Compute other inputs, or with other weights."""
        product = self.compute(inputs, *weights.values())
        return product if self.bias is None else product + self.bias

    def rounded(self, scheme: Scheme, bits: Bits) -> dict[str, Array]:
        """Round the weights by the reference arithmetic."""
        return {
            name: np.moveaxis(
                quantize_dequantize_weights(
                    np.ascontiguousarray(np.moveaxis(weight, self.axis, 0)), scheme, bits
                ),
                0,
                self.axis,
            )
            for name, weight in self.weights.items()
        }

    def model(self, oracle: str) -> LoadModel:
        """Give what makes a model of it.

        Args:
            oracle: the module of model builders.
        """
        options = {name: weight.tolist() for name, weight in self.weights.items()}
        if self.bias is not None:
            options["bias"] = self.bias.ravel().tolist()
        ref = Ref(f"oracle {self.kind}", f"{oracle}:{self.kind}", json.dumps(options))
        return partial(plugins.make, "model", ref)


def oracle_layers() -> tuple[OracleLayer, ...]:
    """Give a layer of each kind, Gaussian in and out.

    Those that are rows have 32 inputs, so that a row is one block for the kernels that have a
    scale per block of 32; convolutions see 8 × 8 pixels.
    """
    generator = np.random.default_rng(6)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float32)

    def small(*shape: int) -> Array:
        return normal(*shape) / np.float32(np.sqrt(shape[-1]))

    linear = OracleLayer(
        "linear", {"weight": normal(64, 32)}, normal(EXAMPLES, 32), _linear, normal(64)
    )
    conv = OracleLayer(
        "conv",
        {"weight": normal(16, 8, 3, 3)},
        normal(EXAMPLES, 8, 8, 8),
        _conv,
        normal(16, 1, 1),
    )
    ids = generator.integers(0, 64, (EXAMPLES, 8))
    return (
        linear,
        conv,
        OracleLayer(
            "conv_transpose",
            {"weight": normal(8, 16, 2, 2)},
            normal(EXAMPLES, 8, 8, 8),
            _conv_transpose,
            normal(16, 1, 1),
            axis=1,
        ),
        OracleLayer(
            "embedding",
            {"weight": normal(64, 32)},
            ids,
            _looked_up,
        ),
        OracleLayer(
            "recurrent",
            {"weight": small(4 * 32, 32), "recurrent": small(4 * 32, 32)},
            normal(EXAMPLES, 6, 32),
            _lstm,
            has_one_input=False,
        ),
        OracleLayer(
            "attention",
            {"weight": small(3 * 32, 32), "out": small(32, 32)},
            normal(EXAMPLES, 6, 32),
            _attention,
            has_one_input=False,
        ),
    )


def _looked_up(ids: NDArray[np.int64], table: Array) -> Outputs:
    return table[ids].astype(np.float64)


def _linear(inputs: NDArray[Any], weight: Array) -> Outputs:
    product: Outputs = inputs.astype(np.float64) @ weight.astype(np.float64).T
    return product


def _conv(inputs: Array, weight: Array) -> Outputs:
    windows: NDArray[Any] = np.lib.stride_tricks.sliding_window_view(
        inputs.astype(np.float64), weight.shape[2:], axis=(2, 3)
    )
    product: Outputs = np.einsum(
        "nchwij,ocij->nohw", windows, weight.astype(np.float64), optimize=True
    )
    return product


def _conv_transpose(inputs: Array, weight: Array) -> Outputs:
    """Compute one whose stride is its kernel, so that each output pixel has one of inputs."""
    product: Outputs = np.einsum(
        "nchw,coij->nohiwj", inputs.astype(np.float64), weight.astype(np.float64), optimize=True
    )
    count, channels, height, down, width, across = product.shape
    return product.reshape(count, channels, height * down, width * across)


def _lstm(inputs: Array, weight: Array, recurrent: Array) -> Outputs:
    """Give the last state; gates as torch has them: input, forget, cell, output."""
    state: Outputs = np.zeros((len(inputs), recurrent.shape[1]))
    cell = state
    for step in np.moveaxis(inputs, 1, 0):
        gates = np.split(_linear(step, weight) + _linear(state, recurrent), 4, axis=1)
        enter, forget, out = (1 / (1 + np.exp(-gates[gate])) for gate in (0, 1, 3))
        cell = forget * cell + enter * np.tanh(gates[2])
        state = out * np.tanh(cell)
    return state


def _attention(inputs: Array, weight: Array, out: Array) -> Outputs:
    """Attend to itself with several heads; the weight is that of query, key and value."""
    count, tokens, width = inputs.shape
    heads = (count, tokens, HEADS, width // HEADS)
    parts = np.split(_linear(inputs, weight), 3, axis=-1)
    query, key, value = (part.reshape(heads).swapaxes(1, 2) for part in parts)
    scores = query @ key.swapaxes(-2, -1) / np.sqrt(width // HEADS)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ value
    return _linear(mixed.swapaxes(1, 2).reshape(inputs.shape), out)
