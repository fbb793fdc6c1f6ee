"""Embeddings in integers, in programs whose quantizer knows products alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.quantization.weights import quantize_weights


def put_integer_tables(
    converted: Any, module: torch.nn.Module, prefix: str, scheme: Scheme, bits: Mapping[str, Bits]
) -> int:
    """Have a graph look its embeddings up in integers, and make the rows it finds float.

    After calibration, whose ranges are those of the float model.

    Args:
        converted: a ``torch.fx.GraphModule`` of ATen's operators, changed in place.
        module: the float model that it was traced from.
        prefix: of its names there.
        scheme: symmetric, with a scale for each row or one for all.
        bits: of the layers that are quantized, by name.

    Returns:
        How many tables it holds now.

    Raises:
        NonFiniteError: weights are NaN or infinite.
    """
    owners = {
        id(layer): (name, layer)
        for name, layer in module.named_modules()
        if name in bits and isinstance(layer, torch.nn.Embedding) and layer.max_norm is None
    }
    owned = {
        f"{prefix}{name}.weight": owners[id(layer)]
        for name, layer in module.named_modules(remove_duplicate=False)
        if id(layer) in owners
    }
    graph = converted.graph
    places: dict[str, str] = {}
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        source, rows = node.args[0], node.args[1]
        if source.op != "get_attr" or source.target not in owned:
            continue
        name, layer = owned[source.target]
        if name not in places:
            places[name] = f"_table_{len(places)}"
            for what, tensor in _integers(layer, scheme, bits[name], name).items():
                converted.register_buffer(f"{places[name]}_{what}", tensor)
        with graph.inserting_before(node):
            found = (graph.get_attr(f"{places[name]}_{what}") for what in ("codes", "scale"))
            codes, scale = (graph.call_function(_LOOK_UP, (one, [rows])) for one in found)
            scale = graph.call_function(torch.ops.aten.unsqueeze.default, (scale, -1))
            values = graph.call_function(torch.ops.aten.mul.Tensor, (codes, scale))
        node.replace_all_uses_with(values)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    converted.recompile()
    return len(places)


_LOOK_UP = torch.ops.aten.index.Tensor


def _integers(
    layer: torch.nn.Embedding, scheme: Scheme, bits: Bits, name: str
) -> dict[str, torch.Tensor]:
    weight = layer.weight.detach()
    found = quantize_weights(weight.to(torch.float32).numpy(), scheme, bits, name=name)
    scale = np.broadcast_to(found.scale.ravel(), len(weight)).copy()
    return {
        "codes": torch.from_numpy(found.integers.astype(np.int8)),
        "scale": torch.from_numpy(scale).to(weight.dtype),
    }
