"""Writing nodes one after the other, under names of their own."""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Builder:
    """Nodes of a graph that is being written, and the constants that they read.

    Args:
        prefix: of the names of all that they make.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._prefix = prefix
        self._named = 0

    def add(self, operator: str, *read: str, made: str = "", **settings: Any) -> str:
        """Add a node with one output; give its name."""
        made = made or self.name()
        self.nodes.append(helper.make_node(operator, read, [made], **settings))
        return made

    def mark(self, name: str, read: str) -> str:
        """Add an Identity node, called as what it makes."""
        return self.add("Identity", read, made=name, name=name)

    def split(self, read: str, count: int) -> list[str]:
        """Cut a tensor into even parts along its last axis."""
        made = [self.name() for _ in range(count)]
        self.nodes.append(helper.make_node("Split", [read], made, num_outputs=count, axis=-1))
        return made

    def constant(self, value: Any) -> str:
        """Store an array, or a number of a NumPy type."""
        self.tensors.append(numpy_helper.from_array(np.asarray(value), self.name()))
        return str(self.tensors[-1].name)

    def name(self) -> str:
        """Give a new name."""
        self._named += 1
        return f"{self._prefix}_{self._named}"
