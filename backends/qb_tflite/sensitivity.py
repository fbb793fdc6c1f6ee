"""Per-layer sensitivity: what quantizing one layer, or all but one, does to the outputs."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays, LayerSensitivity, LoadModel, Quantization
from qb_cluster.quantization.gaussian import decibels, expected_weight_sqnr_db, weight_sqnr_db
from qb_litert.graph import LAYER_KINDS
from qb_litert.quiet import quiet
from qb_litert.runtime import TFLiteExecutable
from qb_tflite.convert import convert
from qb_tflite.layers import names_by_weights
from qb_tflite.simulated import Layer, Simulation, rows_first, simulate, write

Mode = Literal["only", "all_but"]


def layer_sensitivity(
    model: LoadModel,
    quantization: Quantization,
    examples: Arrays | None,
    inputs: Arrays,
) -> list[LayerSensitivity]:
    """Measure the sensitivity of every layer that the scheme quantizes, embeddings too.

    In mode ``only``, one layer's weights and activations are rounded and all else is float; in
    mode ``all_but``, one layer is float and all else is as in the simulated cell.

    Args:
        model: gives a torch module, or the path of a ``.tflite``.
        quantization: simulated, whatever its ``execution`` says.
        examples: calibration examples; given exactly when activations are static.
        inputs: evaluation inputs by name, examples along axis 0.

    Returns:
        Two rows a layer, ``only`` before ``all_but``, in the order they run. Layers have the
        names that patterns under ``layers`` match; operations that the file has one name for, such
        as those of attention, are one layer, and those that have lost theirs are left out.

    Raises:
        PlugInError, UnsupportedError, NonFiniteError, DataError: see ``convert`` and ``simulate``.
    """
    loaded = model()
    data = convert(loaded, {name: values[:1] for name, values in inputs.items()})
    simulation = simulate(data, lambda: loaded, quantization, examples)
    exact = _outputs(simulation.data, inputs)
    signal = _power(exact)
    rows = []
    for group in _groups(simulation, loaded):
        for mode in _MODES:
            outputs = _outputs(write(simulation, group.quantized(mode, simulation)), inputs)
            sqnr_db = decibels(signal, _power(outputs - exact))
            rows.append(_row(group, mode, sqnr_db, simulation, quantization))
    return rows


_MODES: tuple[Mode, ...] = ("only", "all_but")


@dataclass(frozen=True, slots=True)
class _Group:
    """The operations of one layer.

    Attributes:
        name: of the layer.
        sharing: names of the layers that have the same weights, its own among them.
        layers: each operation once.
    """

    name: str
    sharing: tuple[str, ...]
    layers: tuple[Layer, ...]

    def weights(self) -> dict[int, Layer]:
        """Give an operation for each of the layer's weights."""
        return {layer.weights: layer for layer in reversed(self.layers)}

    def quantized(self, mode: Mode, simulation: Simulation) -> Collection[int]:
        """Give the weights that are quantized in a run; what is tied to one goes with it."""
        own = self.weights().keys()
        return own if mode == "only" else {layer.weights for layer in simulation.layers} - own


def _groups(simulation: Simulation, model: Any) -> Iterator[_Group]:
    """Put operations together by the layers that they came from."""
    names = names_by_weights([layer.operation for layer in simulation.layers], model)
    found: dict[str, list[Layer]] = {}
    sharing: dict[str, tuple[str, ...]] = {}
    for layer in simulation.layers:
        if own := names[layer.operation.weights]:
            found.setdefault(own[0], []).append(layer)
            sharing.setdefault(own[0], tuple(dict.fromkeys(own)))
    for name, layers in found.items():
        yield _Group(name, sharing[name], tuple(layers))


def _row(
    group: _Group, mode: Mode, sqnr_db: float, simulation: Simulation, quantization: Quantization
) -> LayerSensitivity:
    weights = {number: layer.operation for number, layer in group.weights().items()}
    own = group.layers[0].bits
    shapes = [rows_first(operation).shape for operation in weights.values()]
    rows = sum(shape[0] for shape in shapes)
    found = expected = None
    if mode == "only":
        exact = {number: rows_first(operation) for number, operation in weights.items()}
        found = weight_sqnr_db(
            np.concatenate([_flat(weights[number].values) for number in weights]),
            np.concatenate([_flat(simulation.weights[number]) for number in weights]),
        )
        each = {
            values.shape: expected_weight_sqnr_db(values.shape, quantization.scheme, own)
            for values in exact.values()
        }
        expected = _together(
            [(values.size, each[values.shape]) for values in exact.values()],
        )
    return LayerSensitivity(
        layer=group.name,
        parameters=sum(math.prod(operation.shape) for operation in weights.values()),
        macs=sum(layer.operation.macs for layer in group.layers),
        mode=mode,
        bits=str(own if mode == "only" else quantization.bits),
        sqnr_db=sqnr_db,
        weight_sqnr_db=found,
        expected_weight_sqnr_db=expected,
        kind=LAYER_KINDS[group.layers[0].operation.kind],
        shape=(rows, *shapes[0][1:]),
        weight=group.name,
        same_bits=group.sharing,
    )


def _together(parts: list[tuple[int, float | None]]) -> float | None:
    """Give the SQNR of tensors of equal variance from their sizes and own SQNRs."""
    noise = 0.0
    for size, sqnr_db in parts:
        if sqnr_db is None:
            return None
        noise += size * 10 ** (-sqnr_db / 10)
    return decibels(sum(size for size, _ in parts), noise)


def _flat(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert values is not None
    return values.reshape(-1)


def _outputs(data: bytes, inputs: Arrays) -> NDArray[np.float32]:
    """Give the first output, the one that metrics look at."""
    with quiet():
        return next(iter(TFLiteExecutable(data, threads=1)(inputs).values()))


def _power(values: NDArray[np.float32]) -> float:
    return float(np.sum(values.astype(np.float64) ** 2))
