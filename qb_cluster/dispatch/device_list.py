"""What a cluster has, as a table and in the words of a spec. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

from qb_cluster.dispatch.preflight import NodeFacts

_RUNTIMES: Final = (
    "qb/torch", "qb/tensorflow", "qb/onnxruntime", "qb/ai-edge-litert", "qb/tflite-runtime",
)  # fmt: skip
_SHOWN: Final = ("qb/board", "qb/arch", "qb/accelerator")
_ACCELERATOR: Final = "qb/accelerator"
_TELLING: Final = ("qb/board", _ACCELERATOR, "qb/arch")
"""Labels that say what kind of machine a node is; its host name says which one."""


def as_table(nodes: Iterable[NodeFacts]) -> str:
    """Give a line a node: host, cores, board, architecture, accelerator, runtimes."""
    rows = [
        (
            node.name,
            node.cores,
            *(node.labels.get(key, "-") for key in _SHOWN),
            " ".join(_runtimes(node.labels)) or "-",
        )
        for node in sorted(nodes, key=lambda node: node.name)
    ]
    heads = ("host", "cores", *(key.removeprefix("qb/") for key in _SHOWN), "runtimes")
    return str(tabulate(rows, heads, tablefmt="plain", disable_numparse=True))


def as_spec(nodes: Sequence[NodeFacts]) -> str:
    """Write ``devices:`` of a spec: an entry a kind of node, with all the cores of its smallest.

    Nodes are of one kind when what they say of board, accelerator and architecture is equal. What
    says nothing of the kind can be asked for as ``cpu`` only.
    """
    kinds: dict[tuple[tuple[str, str], ...], list[NodeFacts]] = {}
    for node in sorted(nodes, key=lambda node: node.name):
        kinds.setdefault(_kind(node.labels), []).append(node)
    lines = ["devices:"]
    names: set[str] = {"cpu"}
    for kind, members in sorted(kinds.items()):
        threads = max(1, min(node.cores for node in members))
        where = ", ".join(dict.fromkeys(node.name for node in members))
        if not kind:
            lines.append(
                f"  - {{name: cpu, threads: {threads}}}  # any node; {where} has no labels"
            )
            continue
        name = json.dumps(_new_name(kind[0][1], names))  # YAML could take "5" or "no" otherwise
        labels = ", ".join(
            f"{key}: {json.dumps(value)}" for key, value in kind if key != _ACCELERATOR
        )
        keys = [f"name: {name}"]
        keys += [f"accelerator: {json.dumps(v)}" for key, v in kind if key == _ACCELERATOR]
        keys += [f"labels: {{{labels}}}"] if labels else []
        lines.append(f"  - {{{', '.join(keys)}, threads: {threads}}}  # {where}")
    return "\n".join(lines)


def as_json(nodes: Iterable[NodeFacts]) -> list[dict[str, Any]]:
    """Give the nodes as JSON values."""
    return [
        {"host": node.name, "cores": node.cores, "labels": dict(node.labels)}
        for node in sorted(nodes, key=lambda node: node.name)
    ]


def _kind(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    told = {key: labels[key] for key in _TELLING if labels.get(key, "none") != "none"}
    return tuple(told.items())


def _runtimes(labels: Mapping[str, str]) -> list[str]:
    return [f"{key.removeprefix('qb/')}={labels[key]}" for key in _RUNTIMES if key in labels]


def _new_name(wanted: str, taken: set[str]) -> str:
    """Give a name that no other device has: the value of its first label, numbered if need be."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name
