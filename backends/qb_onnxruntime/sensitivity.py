"""Per-layer sensitivity: what quantizing one layer, or all but one, does to the outputs."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays, LayerSensitivity, Quantization
from qb_cluster.quantization.gaussian import decibels, expected_weight_sqnr_db, weight_sqnr_db
from qb_onnxruntime.macs import weight_macs
from qb_onnxruntime.runtime import Session
from qb_onnxruntime.simulated import Rounded, Simulation, simulate

BATCH: Final = 64


def layer_sensitivity(
    data: bytes, quantization: Quantization, examples: Arrays | None, inputs: Arrays
) -> list[LayerSensitivity]:
    """Measure the sensitivity of every layer that the scheme quantizes, embeddings too.

    In mode ``only``, one layer's weight and activations are rounded and all else is float; in
    mode ``all_but``, one layer is float and all else is as in the simulated cell. Weights of one
    name (both of a recurrent layer) are one layer.

    Args:
        data: the float file.
        quantization: simulated, whatever its ``execution`` says.
        examples: calibration examples; given exactly when activations are static.
        inputs: evaluation inputs by name, examples along axis 0.

    Returns:
        Two rows a layer, ``only`` before ``all_but``, layers in the graph's order, embeddings and
        recurrent ones last.

    Raises:
        UnsupportedError, PlugInError, NonFiniteError, DataError: see ``simulate``.
    """
    simulation = simulate(data, quantization, examples)
    macs = weight_macs(data, {name: array[:1] for name, array in inputs.items()})
    reference = list(_outputs(simulation, (), inputs))
    signal = sum(map(_power, reference))
    layers: dict[str, list[Rounded]] = {}
    for each in simulation.weights.values():
        layers.setdefault(each.weight.layer, []).append(each)
    rows = []
    for layer, own in layers.items():
        names = [each.weight.tensor for each in own]
        rest = [name for name in simulation.weights if name not in names]
        found, expected = _weight_decibels(own, quantization)
        count = sum(each.weight.size for each in own)
        multiplied = sum(macs.get(name, 0) for name in names)
        modes: tuple[tuple[Literal["only", "all_but"], Sequence[str]], ...] = (
            ("only", names),
            ("all_but", rest),
        )
        for mode, quantized in modes:
            pairs = zip(_outputs(simulation, quantized, inputs), reference, strict=True)
            noise = sum(_power(outputs - exact) for outputs, exact in pairs)
            is_only = mode == "only"
            rows.append(
                LayerSensitivity(
                    layer=layer,
                    parameters=count,
                    macs=multiplied,
                    mode=mode,
                    bits=str(own[0].bits if is_only else quantization.bits),
                    sqnr_db=decibels(signal, noise),
                    weight_sqnr_db=found if is_only else None,
                    expected_weight_sqnr_db=expected if is_only else None,
                    kind=own[0].weight.kind,
                    shape=(sum(len(each.rows) for each in own), *own[0].rows.shape[1:]),
                    weight=layer,
                    same_bits=tuple(dict.fromkeys(n for each in own for n in each.weight.names)),
                )
            )
    return rows


def _outputs(
    simulation: Simulation, names: Sequence[str], inputs: Arrays
) -> Iterator[NDArray[np.float64]]:
    """Run with these weights quantized, and give the first output, which metrics look at."""
    session = Session(simulation.quantized(names), threads=1)
    for start in range(0, len(next(iter(inputs.values()))), BATCH):
        batch = {name: array[start : start + BATCH] for name, array in inputs.items()}
        yield next(iter(session(batch).values())).astype(np.float64)


def _weight_decibels(
    own: Sequence[Rounded], quantization: Quantization
) -> tuple[float, float | None]:
    """Give the SQNR of the weights of a layer, and what Gaussian ones would have."""
    exact = np.concatenate([each.exact.ravel() for each in own])
    rounded = np.concatenate([each.values.ravel() for each in own])
    expected = [
        expected_weight_sqnr_db(each.rows.shape, quantization.scheme, each.bits) for each in own
    ]
    found = weight_sqnr_db(exact, rounded)
    if None in expected or len(own) == 1:
        return found, expected[0]
    powers = [_power(each.exact) for each in own]
    noise = sum(
        power * 10 ** (-level / 10)
        for power, level in zip(powers, expected, strict=True)
        if level is not None
    )
    return found, decibels(sum(powers), noise)


def _power(values: NDArray[np.floating]) -> float:
    return float(np.sum(values.astype(np.float64) ** 2))
