"""Weights that a graph cuts and joins each time it runs, put together once."""

from typing import Final

import onnx
from onnxscript import optimizer

_MOVING: Final = ("Concat", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze")
"""Operators that compute nothing, and make nothing larger than what they read."""
_ANY_SIZE: Final = 2**31 - 1


def fold_weights(model: onnx.ModelProto) -> None:
    """Turn what such operators make of stored tensors into stored tensors, in place.

    torch's exporter does so up to 8,192 numbers: the gates of a larger recurrent layer would be
    no stored weight, so that nothing quantized them and nothing counted them.
    """
    stored = {"", *(tensor.name for tensor in model.graph.initializer)}
    if not any(
        node.op_type in _MOVING and stored.issuperset(node.input) for node in model.graph.node
    ):
        return
    optimizer.fold_constants(
        model,
        input_size_limit=_ANY_SIZE,
        output_size_limit=_ANY_SIZE,
        should_fold=lambda node: None if node.op_type in _MOVING else False,
    )
    optimizer.remove_unused_nodes(model)
