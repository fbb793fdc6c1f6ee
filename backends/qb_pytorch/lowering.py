"""Tracing with a free batch size, and lowering a quantized graph to oneDNN's int8 kernels."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qb_pytorch.third_party import quiet


def export(module: torch.nn.Module, sample: tuple[torch.Tensor, ...]) -> Any:
    """Trace a module whose inputs are examples along axis 0, however many.

    Strictly, because otherwise the quantizer stops at residual nets with "Input partition has
    more than one output node".

    Args:
        module: takes tensors by position.
        sample: two examples of each input.

    Returns:
        A ``torch.export.ExportedProgram``.
    """
    shapes = torch.export.ShapesCollection()
    for tensor in sample:
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(module, sample, dynamic_shapes=shapes, strict=True)


def lower(program: Any, sample: Mapping[str, torch.Tensor]) -> Any:
    """Replace dequantize → convolution or matmul → quantize by int8 kernels, weights packed.

    The same passes as ``torchao.quantization.pt2e.lowering.lower_pt2e_quantized_to_x86``, which
    would freeze the batch size of its example inputs. It also forgets to turn views to reshapes
    (as inductor does before these passes): views fail on the channels-last tensors that int8
    convolutions return, and the patterns for linear layers with inputs of three axes miss them.

    Args:
        program: an exported program of quantized and dequantized tensors.
        sample: two examples of each input, by name and in order.

    Returns:
        A ``torch.fx.GraphModule``, to be called under ``no_grad``.
    """
    with quiet(), torch.no_grad():
        return _lower(program, tuple(sample.values()))


def _lower(program: Any, sample: tuple[torch.Tensor, ...]) -> Any:
    from torch._export.utils import _is_cia_op
    from torch._inductor.constant_folding import constant_fold
    from torch._inductor.fx_passes.freezing_patterns import freezing_passes
    from torch._inductor.fx_passes.post_grad import view_to_reshape

    # Registers the quantization patterns that the freezing passes look for.
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401

    # The patterns are written against graphs in which composite ops alone are decomposed.
    table = torch.export.default_decompositions()
    for op in list(table):
        if not _is_cia_op(op):
            del table[op]
    graph_module = (
        export(program.module(), sample).run_decompositions(table).module(check_guards=False)
    )
    aten = torch.ops.aten
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.t.default):
        node.target, node.args = aten.permute.default, (node.args[0], [1, 0])
    view_to_reshape(graph_module)
    freezing_passes(graph_module, sample)
    constant_fold(graph_module)
    # Comparing shapes with the sample's takes longer than a small net.
    graph_module.validate_inputs = False
    return graph_module


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a lowered graph multiplies with.

    Attributes:
        integer: how many convolutions and matrix products run in int8 kernels.
        integer_macs: their multiply-accumulates, for all examples of the batch.
        float_ops: the others that have weights, by the name of torch's layer.
    """

    integer: int
    integer_macs: int
    float_ops: Counter[str]


def kernels(lowered: Any, sample: Mapping[str, torch.Tensor]) -> Kernels:
    """Run a lowered graph and count its convolutions and matrix products.

    Args:
        lowered: see ``lower``.
        sample: a batch of each input, by name and in order.
    """
    counter = _Counter(lowered)
    with torch.no_grad():
        counter.run(*sample.values())
    return Kernels(counter.integer, counter.integer_macs, counter.float_ops)


class _Counter(torch.fx.Interpreter):
    def __init__(self, lowered: Any) -> None:
        super().__init__(lowered)
        self.integer = self.integer_macs = 0
        self.float_ops: Counter[str] = Counter()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        namespace, _, op = str(target).partition(".")
        if namespace == "onednn" and op.startswith(("qconv", "qlinear")):
            # The prepacked weight: (out, in / groups, …) of a convolution, (in, out) of a matrix.
            shape = args[3].shape
            inputs = shape[0] if op.startswith("qlinear") else math.prod(shape[1:])
            self.integer += 1
            self.integer_macs += result.numel() * inputs
        elif "conv" in op and "prepack" not in op and isinstance(result, torch.Tensor):
            kind = "ConvTranspose" if "transpose" in op else "Conv"
            self.float_ops[f"{kind}{result.ndim - 2}d"] += 1
        elif op.startswith(("linear", "_linear", "_mkl_linear", "mm.", "addmm")):
            self.float_ops["Linear"] += 1
        return result
