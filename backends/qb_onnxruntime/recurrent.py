"""Recurrent layers written as the products they are, one step after the other in a Scan.

LSTM, GRU and RNN nodes read their weights and keep their state to themselves. Written out, what
goes into each product, and what comes out, is a tensor that can be rounded.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from qb_onnxruntime.building import Builder
from qb_onnxruntime.graph import attributes
from qb_onnxruntime.naming import RECURRENT
from qb_onnxruntime.places import Place

_USUAL: Final[dict[str, Sequence[tuple[bytes, ...]]]] = {
    "LSTM": ((b"Sigmoid", b"Tanh", b"Tanh"),),
    "GRU": ((b"Sigmoid", b"Tanh"),),
    "RNN": ((b"Tanh",), (b"Relu",)),
}
"""The functions of a direction that are written out, the default ones first."""

_LENGTHS, _HIDDEN, _CELL, _PEEPHOLES = 4, 5, 6, 7
"""Positions among the inputs of a node, after those of the values, two weights and the bias."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """What became of recurrent layers.

    Attributes:
        places: where their activations can be rounded.
        left: names of nodes that stay as they are, of which only the input can be.
    """

    places: list[Place] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def spell_out(model: onnx.ModelProto, chosen: Collection[str], *, outputs: bool) -> Spelled:
    """Write out the recurrent nodes that have one of these weights, in place.

    What has peepholes, lengths of its own, clipped states or other functions than usual stays,
    and so does a GRU that resets the state before its product.

    Args:
        model: a float model; its nodes are sorted later.
        chosen: names of weights.
        outputs: whether outputs of products are places too.
    """
    spelled = Spelled()
    graph = model.graph
    for number, node in enumerate(list(graph.node)):
        if node.op_type not in RECURRENT or not {*node.input[1:3]} & set(chosen):
            continue
        to = Builder(f"qb_recurrent_{number}")
        mark = f"qb_rounded_input_of_{to.name()}"
        places = [Place(mark, node.input[1], node.input[0])]
        values = to.mark(mark, node.input[0])
        if _is_plain(node):
            places += _written(node, values, to, outputs=outputs)
            graph.node.remove(node)
        else:
            node.input[0] = values
            spelled.left.append(str(node.name))
        graph.node.extend(to.nodes)
        graph.initializer.extend(to.tensors)
        spelled.places.extend(place for place in places if place.weight in chosen)
    return spelled


def _is_plain(node: NodeProto) -> bool:
    given = attributes(node)
    directions = 2 if given.get("direction") == b"bidirectional" else 1
    functions = [usual * directions for usual in _USUAL[node.op_type]]
    return (
        tuple(given.get("activations", functions[0])) in functions
        and not {"clip", "activation_alpha", "activation_beta"} & set(given)
        and not given.get("layout", 0)
        and not given.get("input_forget", 0)
        and not _input(node, _LENGTHS)
        and not _input(node, _PEEPHOLES)
        and (node.op_type != "GRU" or bool(given.get("linear_before_reset", 0)))
    )


def _input(node: NodeProto, position: int) -> str:
    return str(node.input[position]) if position < len(node.input) else ""


def _written(node: NodeProto, values: str, to: Builder, *, outputs: bool) -> list[Place]:
    """Write the nodes that take the place of a recurrent one; give where products can be rounded.

    Args:
        node: the recurrent one.
        values: its input, of shape (steps, examples, inputs).
        to: takes the nodes.
        outputs: whether outputs of products are places too.
    """
    given = attributes(node).get("direction", b"forward")
    reversals = {b"forward": (0,), b"reverse": (1,)}.get(given, (0, 1))
    places = []
    directions = []
    for number, reverse in enumerate(reversals):
        found, ends = _direction(node, values, to, number, reverse, outputs=outputs)
        places += found
        directions.append(ends)
    for position, parts in enumerate(zip(*directions, strict=True)):
        if position < len(node.output) and node.output[position]:
            axis = 1 if position == 0 else 0
            axes = to.constant(np.array([axis]))
            stacked = [to.add("Unsqueeze", part, axes) for part in parts]
            to.add("Concat", *stacked, made=node.output[position], axis=axis)
    return places


def _direction(
    node: NodeProto, values: str, to: Builder, number: int, reverse: int, *, outputs: bool
) -> tuple[list[Place], list[str]]:
    """Write one direction.

    Returns:
        Its places; then its outputs and its last states, the hidden one first.
    """
    index = to.constant(np.array(number))
    of_input, of_state = (
        to.add("Transpose", to.add("Gather", name, index), perm=[1, 0]) for name in node.input[1:3]
    )
    biases = ["", ""]
    if both := _input(node, 3):
        biases = to.split(to.add("Gather", both, index), 2)
    mark = f"qb_rounded_{to.name()}"
    product = _product(to, values, of_input, biases[0])
    places = []
    if outputs:
        places.append(Place(f"{mark}_output", node.input[1], product))
        product = to.mark(f"{mark}_output", product)
    positions = (_HIDDEN, _CELL) if node.op_type == "LSTM" else (_HIDDEN,)
    states = [_start(node, to, _input(node, position), index) for position in positions]
    body = _body(node, Builder(f"{mark}_step"), mark, of_state, biases[1], outputs=outputs)
    *last, given, read, made = (to.name() for _ in range(len(states) + 3))
    to.nodes.append(
        helper.make_node(
            "Scan",
            [*states, product],
            [*last, given, read, made],
            f"{mark}_steps",
            body=body,
            num_scan_inputs=1,
            scan_input_directions=[reverse],
            scan_output_directions=[reverse] * 3,
        )
    )
    places.append(Place(f"{mark}_state", node.input[2], read))
    if outputs:
        places.append(Place(f"{mark}_own", node.input[2], made))
    return places, [given, *last]


def _product(to: Builder, values: str, weight: str, bias: str) -> str:
    product = to.add("MatMul", values, weight)
    return to.add("Add", product, bias) if bias else product


def _start(node: NodeProto, to: Builder, given: str, index: str) -> str:
    """Give the first state of a direction: zeros unless the node reads another."""
    if given:
        return to.add("Gather", given, index)
    size = to.constant(np.array([attributes(node)["hidden_size"]]))
    shape = to.add("Concat", to.add("Shape", node.input[0], start=1, end=2), size, axis=0)
    return to.add("Expand", to.constant(np.float32(0)), shape)


def _body(
    node: NodeProto, to: Builder, mark: str, weight: str, bias: str, *, outputs: bool
) -> onnx.GraphProto:
    """Write a step: from states and the product with its input to states, and what to look at.

    That is, for each step: its output, the state that its product reads, and what that gives.
    """
    state, cell, one = to.name(), to.name(), to.name()
    read = to.add("Identity", state)
    own = made = _product(to, to.mark(f"{mark}_state", state), weight, bias)
    if outputs:
        own = to.mark(f"{mark}_own", made)
    states = _STEPS[node.op_type](to, node, one, own, state, cell)
    results = [*states, to.add("Identity", states[0]), read, to.add("Identity", made)]
    return helper.make_graph(
        to.nodes,
        f"{mark}_body",
        [_value(name) for name in (state, cell)[: len(states)]] + [_value(one)],
        [_value(name) for name in results],
        to.tensors,
    )


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _rnn(to: Builder, node: NodeProto, one: str, own: str, *_: str) -> list[str]:
    is_relu = b"Relu" in attributes(node).get("activations", ())
    return [to.add("Relu" if is_relu else "Tanh", to.add("Add", one, own))]


def _lstm(to: Builder, _: NodeProto, one: str, own: str, __: str, cell: str) -> list[str]:
    enter, leave, forget, new = to.split(to.add("Add", one, own), 4)
    kept = to.add("Mul", to.add("Sigmoid", forget), cell)
    added = to.add("Mul", to.add("Sigmoid", enter), to.add("Tanh", new))
    cell = to.add("Add", kept, added)
    return [to.add("Mul", to.add("Sigmoid", leave), to.add("Tanh", cell)), cell]


def _gru(to: Builder, _: NodeProto, one: str, own: str, state: str, __: str) -> list[str]:
    (update, reset, new), (own_update, own_reset, own_new) = to.split(one, 3), to.split(own, 3)
    kept = to.add("Sigmoid", to.add("Add", update, own_update))
    share = to.add("Sigmoid", to.add("Add", reset, own_reset))
    found = to.add("Tanh", to.add("Add", new, to.add("Mul", share, own_new)))
    rest = to.add("Sub", to.constant(np.float32(1)), kept)
    return [to.add("Add", to.add("Mul", rest, found), to.add("Mul", kept, state))]


_STEPS: Final[dict[str, Callable[..., list[str]]]] = {"RNN": _rnn, "LSTM": _lstm, "GRU": _gru}
"""What a step computes; formulas and the order of gates as in ONNX's documentation."""
