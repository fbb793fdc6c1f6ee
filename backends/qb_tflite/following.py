"""What follows a layer on the layer's own integers, and so rounds nothing anew."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qb_cluster.contracts import Bits
from qb_litert.graph import Place, operator_kinds

FOLLOWING: Final = (
    *("RELU", "MAX_POOL_2D", "RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "SPLIT", "UNPACK"),
)
"""Operations that put out numbers of their input, or zero, and nothing else."""


def following(
    model: Any, layers: Mapping[Place, Bits]
) -> Iterator[tuple[str, tuple[str, ...], Bits]]:
    """Find the operations that read a layer's output, or what such an operation put out.

    The same kinds of operations elsewhere are none of a scheme's business, and not harmless: a
    causal mask has a RESHAPE of its own, and 8 bits hold no minus infinity.

    Args:
        model: as ``read_model`` gives it.
        layers: bits of those whose outputs are integers.

    Yields:
        Kind, names of the outputs, and bits of the layer.
    """
    for number, graph in enumerate(model.subgraphs):
        passed: dict[int, Bits] = {}
        kinds = operator_kinds(model, graph)
        for index, (operator, kind) in enumerate(zip(graph.operators, kinds, strict=True)):
            bits = layers.get((number, index))
            if bits is None and kind in FOLLOWING:
                bits = next((passed[i] for i in map(int, operator.inputs) if i in passed), None)
                if bits is not None:
                    names = (graph.tensors[output].name.decode() for output in operator.outputs)
                    yield kind, tuple(names), bits
            if bits is not None:
                passed.update((int(output), bits) for output in operator.outputs)
