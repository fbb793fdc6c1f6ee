"""Simulated quantization: any scheme, any bit-width, computed by float operators."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qb_cluster.contracts import Arrays, Bits, Calibration, Quantization
from qb_cluster.errors import UnsupportedError
from qb_cluster.quantization.kept_ranges import KeptRanges
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_onnxruntime import rounding
from qb_onnxruntime.calibration import observe
from qb_onnxruntime.coverage import Weight, covered, weights
from qb_onnxruntime.graph import load
from qb_onnxruntime.places import Place, mark
from qb_onnxruntime.recurrent import spell_out
from qb_onnxruntime.rounding import Rounder
from qb_onnxruntime.runtime import ONE_BY_ONE
from qb_onnxruntime.subgraphs import (
    all_graphs,
    names_made,
    names_read,
    rename_reads,
    sort_nodes,
    subgraphs,
)
from qb_onnxruntime.support import SCOPE

_KEPT: Final[KeptRanges[list[tuple[float, float]]]] = KeptRanges()


@dataclass(frozen=True, slots=True)
class Rounded:
    """A weight, exact and rounded.

    Attributes:
        weight: which one.
        bits: so many.
        exact: float32, in the layout of the file.
        values: the same, rounded.
    """

    weight: Weight
    bits: Bits
    exact: NDArray[np.float32]
    values: NDArray[np.float32]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The exact weight with output channels on axis 0."""
        if self.weight.kind == "recurrent":
            return self.exact.reshape(-1, self.exact.shape[-1])
        return np.moveaxis(self.exact, self.weight.axis, 0)


@dataclass(frozen=True, slots=True)
class Simulation:
    """A float model of which any layers can be quantized.

    Attributes:
        weights: those that the scheme covers, by name, layers in the graph's order.
        rounders: what rounds activations, by the name of the node that stands there; with the
            name of the weight of its layer.
        left: names of recurrent nodes whose state stays float.
    """

    _model: onnx.ModelProto
    weights: Mapping[str, Rounded]
    rounders: Mapping[str, tuple[str, Rounder]]
    left: tuple[str, ...]

    def quantized(self, names: Collection[str]) -> bytes:
        """Give the file in which the layers of these weights are quantized."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.name in names:
                values = self.weights[tensor.name].values
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        functions = set()
        for graph in all_graphs(model.graph):
            for node in graph.node:
                weight, rounder = self.rounders.get(node.name, ("", None))
                if rounder is not None and weight in names:
                    model.graph.initializer.extend(rounding.apply(node, rounder))
                    functions.add(rounder.function)
        rounding.define(model, functions)
        return bytes(model.SerializeToString())


def simulate(data: bytes, quantization: Quantization, examples: Arrays | None) -> Simulation:
    """Round the weights, and find out how activations are rounded.

    Args:
        data: the float file.
        quantization: what ``support`` said yes to.
        examples: calibration examples by input name; given exactly when activations are static.

    Raises:
        UnsupportedError: the model has no weights, or its operator set cannot be raised.
        PlugInError: the scheme's ``layers`` name none of the model's, or its own weight quantizer
            returns something else than weights.
        NonFiniteError: weights or calibration activations hold NaN or infinity.
        DataError: there are no calibration examples.
    """
    scheme = quantization.scheme
    model = load(data, ())
    if not weights(model):
        raise UnsupportedError(
            "onnxruntime quantizes nodes with stored float32 weights (Conv, ConvTranspose, MatMul, "
            "Gemm, Gather, LSTM, GRU, RNN), and this model has none"
        )
    rounded = _rounded(model, covered(model, quantization), quantization)
    _keep_from_subgraphs(model, rounded)
    places: list[Place] = []
    left: tuple[str, ...] = ()
    if rounding.rounds_activations(scheme):
        outputs = scheme.scope_or(SCOPE) == "layers"
        places = mark(model, rounded, outputs=outputs)
        spelled = spell_out(model, rounded, outputs=outputs)
        places += spelled.places
        left = tuple(spelled.left)
        sort_nodes(model.graph)
    rounders = _rounders(model, places, rounded, quantization, examples)
    if scheme.activations == "dynamic":
        # Examples may lie along any axis of a tensor within: alone, all of it is the example's.
        known = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, known | {ONE_BY_ONE: "1"})
    return Simulation(model, rounded, rounders, left)


def _rounded(
    model: onnx.ModelProto, found: Mapping[Weight, Bits], quantization: Quantization
) -> dict[str, Rounded]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    rounded = {}
    for weight, bits in found.items():
        exact = numpy_helper.to_array(tensors[weight.tensor])
        # A recurrent layer has one matrix for each direction.
        matrices, axis = (exact, 0) if weight.kind == "recurrent" else (exact[None], weight.axis)
        values = [
            np.moveaxis(
                quantize_dequantize_weights(
                    np.moveaxis(matrix, axis, 0), quantization.scheme, bits, name=weight.layer
                ),
                0,
                axis,
            )
            for matrix in matrices
        ]
        stored = np.ascontiguousarray(np.stack(values)).reshape(exact.shape)
        rounded[weight.tensor] = Rounded(weight, bits, exact, stored)
    return rounded


def _keep_from_subgraphs(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Give subgraphs copies of their own of these weights, in place: they stay float."""
    graph = model.graph
    read = {name for node in graph.node for inner in subgraphs(node) for name in names_read(inner)}
    copies = {name: f"{name}_of_subgraphs" for name in read.intersection(names)}
    for tensor in list(graph.initializer):
        if tensor.name in copies:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = copies[tensor.name]
    for node in graph.node:
        for each in subgraphs(node):
            own = names_made(each)
            rename_reads(each, {old: new for old, new in copies.items() if old not in own})


def _rounders(
    model: onnx.ModelProto,
    places: Collection[Place],
    rounded: Mapping[str, Rounded],
    quantization: Quantization,
    examples: Arrays | None,
) -> dict[str, tuple[str, Rounder]]:
    """Give what rounds at each place."""
    scheme = quantization.scheme
    symmetric = scheme.symmetric_activations
    widths = [rounded[place.weight].bits.activation or 0 for place in places]
    if scheme.number in rounding.CASTS:
        found = [Rounder(rounding.CASTS[scheme.number])] * len(widths)
    elif scheme.activations == "dynamic":
        found = [rounding.dynamic(width, symmetric=symmetric) for width in widths]
    elif scheme.activations == "static" and places:
        if examples is None:
            raise ValueError("static activations need calibration examples")
        names = [place.observed for place in places]
        asked = list(zip(names, widths, strict=True))
        calibration = quantization.calibration or Calibration()
        ranges = _KEPT.observed(
            lambda: observe(model, asked, examples, calibration, symmetric=symmetric),
            model=model.SerializeToString() + repr(names).encode(),
            examples=examples,
            calibration=calibration,
            bits=widths,
            symmetric=symmetric,
        )
        found = [
            rounding.static(*ends, width, symmetric=symmetric)
            for ends, width in zip(ranges, widths, strict=True)
        ]
    else:
        found = []
    return {
        place.node: (place.weight, rounder) for place, rounder in zip(places, found, strict=True)
    }
