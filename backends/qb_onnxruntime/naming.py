"""What the layers of a graph are called: as in the torch module that it was exported from.

The names travel in the file's metadata, because a baseline is quantized without its module.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qb_cluster.catalog.layer_weights import layer_names, layer_weights
from qb_cluster.quantization.layer_names import Names, StoredWeight, names_of
from qb_onnxruntime.subgraphs import names_read

LAYER_NAMES: Final = "qb_layer_names"
"""Key of the metadata: names of layers by the weight's name, as JSON."""

MODEL_LAYERS: Final = "qb_layers"
"""Key of the metadata: all layers of the model as JSON; some may have been folded away."""

RECURRENT: Final = ("LSTM", "GRU", "RNN")
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_PLACES: Final = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MatMul", "Gemm"), (1,)),
    "Gather": (0,),
    **dict.fromkeys(RECURRENT, (1, 2)),
}
"""Which inputs of a node are weights."""

_CHANNELS: Final = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0, "Gather": 0}
"""The axis of output channels, 1 for recurrent nodes."""

_WEIGHT: Final = "weight"
_NAMELESS: Final = ("onnx::", "val_", "_val_")
"""How exporters begin the names of weights that they have rearranged."""


def layer_name(weight: str, node: NodeProto) -> str:
    """Name a layer of a file: by its weight without ``.weight``, else by its node."""
    if weight == _WEIGHT or weight.endswith(f".{_WEIGHT}"):
        return weight.removesuffix(_WEIGHT).removesuffix(".")
    return str(node.name) if weight.startswith(_NAMELESS) else weight


def kept_names(model: onnx.ModelProto) -> dict[str, Names]:
    """Give the names of layers that an export has kept, by the weight's name."""
    kept = next((e.value for e in model.metadata_props if e.key == LAYER_NAMES), "{}")
    return {weight: tuple(names) for weight, names in json.loads(kept).items()}


def model_layers(model: onnx.ModelProto) -> list[str]:
    """Give the names of the layers of the model that a file was exported from."""
    kept = next((e.value for e in model.metadata_props if e.key == MODEL_LAYERS), "[]")
    return [str(name) for name in json.loads(kept)]


def name_layers(model: onnx.ModelProto, module: Any) -> None:
    """Give weights the names of their layers in the module, in place.

    Layers with equal weights, which an exporter stores once, get a weight each.

    Args:
        model: fresh from the exporter, with its name scopes.
        module: the torch module.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    reads = list(_reads(model, tensors))
    times = Counter(node.input[place] for node, place in reads)
    stored = [
        StoredWeight(
            node.input[place],
            numpy_helper.to_array(tensors[node.input[place]]),
            _CHANNELS.get(node.op_type, 1),
            _hints(node, node.input[place] if times[node.input[place]] == 1 else ""),
        )
        for node, place in reads
    ]
    names: dict[str, Names] = {}
    made: dict[tuple[str, Names], str] = {}
    for (node, place), layers in zip(reads, names_of(layer_weights(module), stored), strict=True):
        old = node.input[place]
        if (old, layers) not in made:
            made[old, layers] = _named(old, layers, {*tensors, *names})
            if made[old, layers] != old:
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensors[old])
                copy.name = made[old, layers]
            names[made[old, layers]] = layers
        node.input[place] = made[old, layers]
    _drop_unread(model, {old for old, _ in made})
    kept = {weight: layers for weight, layers in names.items() if layers}
    given = {entry.key: entry.value for entry in model.metadata_props}
    told = {
        LAYER_NAMES: json.dumps(kept, sort_keys=True),
        MODEL_LAYERS: json.dumps(layer_names(module)),
    }
    helper.set_model_props(model, given | told)


def _reads(
    model: onnx.ModelProto, tensors: dict[str, TensorProto]
) -> Iterator[tuple[NodeProto, int]]:
    """Give the nodes that read weights, in the order they run, and which input that is."""
    floats = {
        name
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    for node in model.graph.node:
        for place in _PLACES.get(node.op_type, ()):
            if place < len(node.input) and node.input[place] in floats:
                yield node, place


def _hints(node: NodeProto, weight: str) -> Names:
    """Name the module that a node was traced in, then what its weight's name says, if given."""
    scopes = next((e.value for e in node.metadata_props if e.key == _SCOPES), "[]")
    modules = [str(scope) for scope in ast.literal_eval(scopes)[:-1]]
    own = (layer_name(weight, node),) if weight and not weight.startswith(_NAMELESS) else ()
    return (*modules[-1:], *own)


def _named(old: str, layers: Names, taken: set[str]) -> str:
    """Give the name of a weight: its own if that tells the layer, else one after its layers."""
    if not layers or (not old.startswith(_NAMELESS) and _plain(old) in layers):
        return old
    above = layers[0].rpartition(".")[0]
    together = len(layers) > 1 and all(name.startswith(f"{above}.") for name in layers)
    wanted = f"{above if together else layers[0]}.{_WEIGHT}".removeprefix(".")
    return old if wanted in taken and old.startswith(_NAMELESS) else _free(wanted, taken)


def _plain(weight: str) -> str:
    return weight.removesuffix(_WEIGHT).removesuffix(".")


def _free(wanted: str, taken: set[str]) -> str:
    number, name = 1, wanted
    while name in taken:
        number, name = number + 1, f"{wanted}_{number}"
    return name


def _drop_unread(model: onnx.ModelProto, candidates: set[str]) -> None:
    read = names_read(model.graph)
    kept = [t for t in model.graph.initializer if t.name in read or t.name not in candidates]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
