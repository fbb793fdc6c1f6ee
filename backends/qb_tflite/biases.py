"""Biases in the shape that the schema has for them, which not every converter writes."""

import math
from collections import defaultdict
from typing import Any, Final

import numpy as np

from qb_litert.graph import is_constant, operator_kinds

_BIAS_AT: Final = {
    "CONV_2D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}
"""Which of an operation's inputs is its bias."""


def flatten_biases(model: Any) -> bool:
    """Reshape biases of shape (1, …, 1, C) to (C,), in place; tell whether there were any.

    litert-torch writes one behind a transposed convolution that batch normalization was folded
    into. ai-edge-quantizer gives it a scale per element of axis 0, of which it has one, and LiteRT
    refuses the file. The kernels read C numbers in either shape.

    Args:
        model: as ``read_model`` gives it.
    """
    changed = False
    for graph in model.subgraphs:
        readers: dict[int, list[bool]] = defaultdict(list)
        for operator, kind in zip(graph.operators, operator_kinds(model, graph), strict=True):
            bias_at = _BIAS_AT.get(kind)
            for place, number in enumerate(operator.inputs):
                readers[int(number)].append(place == bias_at)
        for number, as_bias in readers.items():
            tensor = graph.tensors[number] if number >= 0 else None
            # What something else reads too may be a factor or a summand of just that shape.
            if tensor is None or tensor.shape is None or not all(as_bias):
                continue
            size = math.prod(int(length) for length in tensor.shape)
            if len(tensor.shape) > 1 and tensor.shape[-1] == size and is_constant(model, tensor):
                tensor.shape = np.array([size], np.int32)
                changed = True
    return changed
