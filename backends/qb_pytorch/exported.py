"""A ``.pt2`` file as a model: an exported program whose layers are modules again.

``torch.export`` leaves calls of ATen's operators, and their weights under the names they had.
Putting a ``torch.nn`` layer back wherever a convolution, a matrix product or an embedding reads
such a weight gives a module that everything else here can work on, like any other.
"""

import functools
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from qb_cluster.errors import CellError, UnsupportedError
from qb_pytorch import program_file
from qb_pytorch.third_party import quiet

_CONVOLUTION: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED: Final = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_KINDS: Final[Mapping[str, tuple[type[torch.nn.Module], tuple[str, ...]]]] = {
    "linear": (torch.nn.Linear, ("input", "weight", "bias")),
    "embedding": (torch.nn.Embedding, ("weight", "input", "padding_idx")),
    "conv1d": (torch.nn.Conv1d, _CONVOLUTION),
    "conv2d": (torch.nn.Conv2d, _CONVOLUTION),
    "conv3d": (torch.nn.Conv3d, _CONVOLUTION),
    "conv_transpose1d": (torch.nn.ConvTranspose1d, _TRANSPOSED),
    "conv_transpose2d": (torch.nn.ConvTranspose2d, _TRANSPOSED),
    "conv_transpose3d": (torch.nn.ConvTranspose3d, _TRANSPOSED),
}
"""ATen's operators, the layers they stand for, and the names of their arguments."""


def read(path: Path) -> torch.nn.Module:
    """Read a float program, without running anything in the file.

    Args:
        path: what ``torch.export.save`` wrote, with a free batch size.

    Raises:
        CellError: there is no such file, it is damaged or foreign, or holds pickles.
        UnsupportedError: the program takes batches of one size only.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CellError(f"'{path}' cannot be read: {error.strerror}") from None
    original, spec = _read(path, status.st_mtime_ns, status.st_size)
    with quiet():  # torch warns of its own containers when they are copied
        module = deepcopy(original)
    module.register_forward_hook(functools.partial(_nested, spec))
    return module


@functools.lru_cache(maxsize=1)
def _read(path: Path, _modified_ns: int, _size: int) -> tuple[torch.nn.Module, Any]:
    """Give a module that returns its outputs in a row, and the containers they belong in."""
    what = f"'{path}'"
    program, _ = program_file.read(path.read_bytes(), what)
    _check_batch(program, what)
    with quiet():
        module = program.module(check_guards=False)
    _restore_layers(module)
    # Tensors in and tensors out, without torch's own matching of nested containers, which takes
    # longer than a small net and warns of itself.
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    module._forward_pre_hooks.clear()  # noqa: SLF001 torch's check of the containers
    return module, program.call_spec.out_spec


def _nested(spec: Any, _: torch.nn.Module, __: tuple[Any, ...], outputs: Any) -> Any:
    """Give the outputs in the containers that the program's maker returned."""
    return pytree.tree_unflatten(outputs, spec)


def _check_batch(program: Any, what: str) -> None:
    """Make sure that the batch is free."""
    inputs = list(program.graph_signature.user_inputs)
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        is_input = node.name in inputs and isinstance(value, torch.Tensor)
        if is_input and (value.ndim == 0 or isinstance(value.shape[0], int)):
            shape = list(value.shape)
            raise UnsupportedError(
                f"the program in {what} takes '{node.name}' in the shape {shape} and no other; "
                "export it with a free batch size: torch.export.export(model, examples, "
                "dynamic_shapes=…), with {0: torch.export.Dim.DYNAMIC} for each input"
            )


def _restore_layers(module: Any) -> None:
    """Replace ATen's calls that read a layer's weight by calls of the layer, in place."""
    graph = module.graph
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for node in list(graph.nodes):
        kind = _kind(node)
        if kind is None:
            continue
        given = dict(zip(_KINDS[kind][1], node.args, strict=False)) | dict(node.kwargs)
        weight, bias = (_parameter(given.get(name), parameters) for name in ("weight", "bias"))
        if weight is None or (bias is None) != (given.get("bias") is None):
            continue  # computed from other parameters
        name = _place(module, _layer(kind, given, weight, bias))
        if name is None:
            continue
        with graph.inserting_before(node):
            call = graph.call_module(name, (given["input"],))
        call.meta = node.meta
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    module.recompile()


def _kind(node: Any) -> str | None:
    """Give the name of the operator of a node, if it is one of ``_KINDS``."""
    if node.op != "call_function" or getattr(node.target, "namespace", "") != "aten":
        return None
    name = str(node.target.overloadpacket.__name__)
    return name if name in _KINDS else None


def _parameter(
    node: Any, parameters: Mapping[str, torch.nn.Parameter]
) -> torch.nn.Parameter | None:
    """Give the parameter that a node reads, if it does nothing else."""
    return None if node is None or node.op != "get_attr" else parameters.get(node.target)


def _place(module: Any, layer: torch.nn.Module) -> str | None:
    """Put a layer where its parameters are; give the name, or ``None`` where that is taken.

    Tied weights are at several places, whichever of them the program reads.
    """
    for name, owner in module.named_modules():
        if not all(
            _is_same(getattr(owner, kind, None), getattr(layer, kind, None))
            for kind in ("weight", "bias")
        ):
            continue
        if type(owner) is torch.nn.Module:  # what export leaves: a bare owner of parameters
            module.set_submodule(name, layer)
            return str(name)
        if repr(owner) == repr(layer):  # called before
            return str(name)
    return None


def _is_same(one: Any, two: Any) -> bool:
    """Tell whether two parameters share their memory, or neither is there."""
    if one is None or two is None:
        return one is two
    return bool(one.shape == two.shape and one.data_ptr() == two.data_ptr())


def _layer(
    kind: str,
    given: Mapping[str, Any],
    weight: torch.nn.Parameter,
    bias: torch.nn.Parameter | None,
) -> torch.nn.Module:
    """Make the layer that a call stands for."""
    make = _KINDS[kind][0]
    layer: torch.nn.Module
    if kind == "linear":
        layer = make(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    elif kind == "embedding":
        padding = given.get("padding_idx", -1)
        layer = make(*weight.shape, padding_idx=None if padding == -1 else padding, device="meta")
    else:
        groups = given.get("groups", 1)
        options = {
            name: _each(given[name], weight.ndim - 2)
            for name in ("stride", "padding", "dilation", "output_padding")
            if name in given
        }
        # (out, in / groups, …) of a convolution, (in, out / groups, …) of a transposed one.
        channels = (weight.shape[1] * groups, weight.shape[0])
        layer = make(
            *(channels[::-1] if kind.startswith("conv_transpose") else channels),
            tuple(weight.shape[2:]),
            groups=groups,
            bias=bias is not None,
            device="meta",
            **options,
        )
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer.eval()


def _each(value: Any, axes: int) -> Any:
    """Give one number for each axis of the kernel, or the name of a padding."""
    if isinstance(value, str):
        return value
    numbers = tuple(value)
    return numbers * axes if len(numbers) == 1 else numbers
