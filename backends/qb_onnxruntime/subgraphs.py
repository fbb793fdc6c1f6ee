"""Subgraphs: bodies of If, Loop and Scan, whose nodes read names of the graphs around them."""

from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter

from onnx import GraphProto, NodeProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Give the graphs that a node holds, without those within them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Give a graph and all graphs within it, at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def names_read(graph: GraphProto) -> set[str]:
    """Give the names that nodes and outputs of a graph read, here and at any depth."""
    return {
        name
        for each in all_graphs(graph)
        for name in (
            *(read for node in each.node for read in node.input),
            *(output.name for output in each.output),
        )
    }


def names_made(graph: GraphProto) -> set[str]:
    """Give the names that a graph itself defines: inputs, stored tensors and outputs of nodes."""
    return {
        *(value.name for value in graph.input),
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in node.output),
    }


def rename_reads(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    """Make nodes read names under new ones in place, at any depth.

    A subgraph that defines one of these names itself means its own, and keeps it.
    """
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        for inner in subgraphs(node):
            own = names_made(inner)
            rename_reads(inner, {old: new for old, new in renamed.items() if old not in own})


def sort_nodes(graph: GraphProto) -> None:
    """Put nodes after those whose outputs they or their subgraphs read, in place, as ONNX demands.

    onnxruntime's quantizers append what they insert; their own sorting overlooks subgraphs.
    """
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    reads = [
        {*node.input}.union(*(names_read(inner) for inner in subgraphs(node))) for node in nodes
    ]
    order = TopologicalSorter(
        {i: sorted(maker[name] for name in read if name in maker) for i, read in enumerate(reads)}
    )
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order.static_order())
