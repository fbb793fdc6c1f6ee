"""From a torch module to the bytes of an ONNX file."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch

from qb_cluster.contracts import Arrays
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_onnxruntime.folding import fold_weights
from qb_onnxruntime.graph import OPSET
from qb_onnxruntime.naming import name_layers
from qb_onnxruntime.quiet import quiet
from qb_onnxruntime.reason import reason
from qb_onnxruntime.subgraphs import all_graphs

LARGEST_FILE = 2**31 - 1
LONE_INPUT = "input"
LONE_OUTPUT = "output"


def export(model: Any, example: Arrays) -> bytes:
    """Export a module in evaluation mode, with a batch of any size, without changing it.

    Args:
        model: the module. Its inputs are those of ``example`` by keyword; a lone one called
            ``input`` goes by position.
        example: one example (axis 0 has length 1).

    Raises:
        PlugInError: the model is not a ``torch.nn.Module``, or fails on the example.
        UnsupportedError: it cannot be exported, or is too large for one ONNX file.
    """
    if not isinstance(model, torch.nn.Module):
        raise PlugInError(
            "onnxruntime converts a torch.nn.Module or an .onnx file, and the model is a "
            f"{type(model).__qualname__}; let the model's callable return one of these, or leave "
            "this backend out for it"
        )
    _check_size(model)
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    # Two examples, because a traced batch of one is taken for a constant.
    tensors = {
        name: torch.from_numpy(np.repeat(array, 2, axis=0)) for name, array in example.items()
    }
    batch = {0: torch.export.Dim("batch")}
    by_position = set(tensors) == {LONE_INPUT}
    args = tuple(tensors.values()) if by_position else ()
    kwargs = {} if by_position else tensors
    with torch.no_grad():
        outputs = output_names(_outputs(model, args, kwargs))
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                input_names=list(tensors),
                output_names=outputs,
                opset_version=OPSET,
                dynamic_shapes=(batch,) if by_position else dict.fromkeys(tensors, batch),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedError(
            f"torch.onnx.export cannot convert this model with a batch of any size: {reason(error)}"
            "; make its forward traceable by torch.export, or leave onnxruntime out of its backends"
        ) from error
    assert program is not None
    proto = program.model_proto  # made anew at each access
    fold_weights(proto)
    name_layers(proto, model)
    return _cleaned(proto)


def _outputs(
    model: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor]
) -> Any:
    """Run a batch of two.

    Raises:
        UnsupportedError: the model takes one example, and fails on two.
        PlugInError: it fails on one.
    """
    try:
        return model(*args, **kwargs)
    except Exception as error:  # whatever a model of the user's raises
        try:
            model(*(tensor[:1] for tensor in args), **{n: t[:1] for n, t in kwargs.items()})
        except Exception as alone:
            raise PlugInError(
                f"the model fails on an example of the dataset ({reason(alone)}); see that its "
                "forward takes inputs of these shapes, the batch first"
            ) from alone
        raise UnsupportedError(
            f"the model takes one example and fails on two ({reason(error)}), and onnxruntime "
            "needs one that takes a batch of any size; mend its forward, or leave onnxruntime out "
            "of its backends"
        ) from error


def _check_size(model: torch.nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > LARGEST_FILE:
        raise UnsupportedError(
            f"the model's weights take {size / 2**30:.1f} GiB, and one ONNX file holds at most "
            "2 GiB; leave onnxruntime out of the backends of this model"
        )


def output_names(raw: Any) -> list[str]:
    """Name what a module returned: a tensor, a sequence or a mapping of them.

    Raises:
        UnsupportedError: there is something else in it.
    """
    if isinstance(raw, torch.Tensor):
        return [LONE_OUTPUT]
    members: dict[str, Any] = {}
    if isinstance(raw, Mapping):
        members = {str(name): member for name, member in raw.items() if member is not None}
    elif isinstance(raw, tuple | list):
        members = {f"{LONE_OUTPUT}_{i}": member for i, member in enumerate(raw)}
    strange = {
        type(member).__name__ for member in members.values() if not isinstance(member, torch.Tensor)
    }
    if strange or not members:
        raise UnsupportedError(
            f"the model returns a {type(raw).__name__} of {', '.join(sorted(strange)) or 'nothing'}"
            "; onnxruntime needs a tensor, or a tuple or mapping of tensors"
        )
    return list(members)


def _cleaned(model: onnx.ModelProto) -> bytes:
    """Serialize without the stack traces the exporter leaves at every node.

    They name folders of this machine, so the same model would have another digest elsewhere.
    """
    for graph in all_graphs(model.graph):
        values = (*graph.value_info, *graph.input, *graph.output)
        for part in (*graph.node, *values, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        graph.ClearField("metadata_props")
    return bytes(model.SerializeToString())
