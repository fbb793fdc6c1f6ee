"""What a cluster has, as a table and in the words of a spec. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from tabulate import tabulate

from qb_cluster.dispatch.preflight import NodeFacts
from qb_cluster.nodes.labels import OURS, RUNTIMES, is_key, is_value

_BOARD: Final = "qb/board"
_ARCH: Final = "qb/arch"
_ACCELERATOR: Final = "qb/accelerator"
_TELLING: Final = (_BOARD, _ACCELERATOR, _ARCH)
"""Labels that say what kind of machine a node is."""
_NONE: Final = "none"
_USUAL: Final = (_ACCELERATOR, _BOARD, _ARCH, "qb/cpu")
_OURS: Final = "qb"
_RAYS: Final = "ray.io"
_HOST: Final = "qb/host"
_UNTIL_RESTART: Final = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Nodes that are one device: all with GPUs, or all without.

    Attributes:
        nodes: at least one, sorted by name.
        labels: that they have, and no other node that could serve the device has at once;
            ``None`` where there are no such labels.
    """

    nodes: Sequence[NodeFacts]
    labels: Mapping[str, str] | None

    @property
    def has_gpu(self) -> bool:
        return self.nodes[0].gpus > 0

    @property
    def threads(self) -> int:
        """All the cores of the smallest node, or what it has for each of its GPUs."""
        return max(1, min(node.cores // max(1, node.gpus) for node in self.nodes))


def as_table(nodes: Iterable[NodeFacts]) -> str:
    """Give a line a node: host, cores, board, architecture, GPUs, accelerator, runtimes."""
    rows = [
        (
            node.name,
            node.cores,
            node.labels.get(_BOARD, "-"),
            node.labels.get(_ARCH, "-"),
            node.gpus,
            node.labels.get(_ACCELERATOR, "-"),
            " ".join(_runtimes(node.labels)) or "-",
        )
        for node in sorted(nodes, key=lambda node: node.name)
    ]
    heads = ("host", "cores", "board", "arch", "gpus", "accelerator", "runtimes")
    return str(tabulate(rows, heads, tablefmt="plain", disable_numparse=True))


def as_spec(nodes: Iterable[NodeFacts]) -> str:
    """Write ``devices:`` of a spec: an entry a kind of node, which fits the nodes of it alone.

    Nodes are of one kind when what they say of board, accelerator and architecture is equal, and
    all or none have a GPU. An entry says that, and the fewest more labels that keep other nodes
    out. A kind that has no such labels is split; what even then cannot be told from others, or
    has no cores, is named in a comment.
    """
    ordered = sorted(nodes, key=lambda node: node.name)
    able = [node for node in ordered if node.cores > 0]
    alike: dict[tuple[tuple[tuple[str, str], ...], bool], list[NodeFacts]] = {}
    for node in able:
        alike.setdefault((tuple(_told(node).items()), node.gpus > 0), []).append(node)
    kinds = [kind for _, members in sorted(alike.items()) for kind in _kinds(members, able)]
    names: set[str] = {"cpu"}
    return "\n".join(
        [
            "devices:",
            *(_entry(kind, kind.labels, names) for kind in kinds if kind.labels is not None),
            *_comment(
                [node for kind in kinds if kind.labels is None for node in kind.nodes],
                "others have all of these labels too; add one of its own in node.toml there",
            ),
            *_comment([node for node in ordered if node.cores < 1], "no cores for workers"),
        ]
    )


def as_json(nodes: Iterable[NodeFacts]) -> list[dict[str, Any]]:
    """Give the nodes as JSON values."""
    return [
        {"host": node.name, "cores": node.cores, "gpus": node.gpus, "labels": dict(node.labels)}
        for node in sorted(nodes, key=lambda node: node.name)
    ]


def _kinds(members: Sequence[NodeFacts], nodes: Sequence[NodeFacts]) -> Iterator[_Kind]:
    """Give these nodes as one kind, if labels tell them from all others; else split them."""
    labels = _distinguishing(members, nodes)
    keys = sorted({key for node in members for key in _lasting(node)}, key=_rank)
    differing = [key for key in keys if len({node.labels.get(key) for node in members}) > 1]
    if labels is not None or not differing:
        yield _Kind(members, labels)
        return
    parts: dict[str | None, list[NodeFacts]] = {}
    for node in members:
        parts.setdefault(node.labels.get(differing[0]), []).append(node)
    for part in parts.values():
        yield from _kinds(part, nodes)


def _distinguishing(
    members: Sequence[NodeFacts], nodes: Sequence[NodeFacts]
) -> dict[str, str] | None:
    """Give what members say of their kind, and the fewest more labels that no other has at once."""
    told = _told(members[0])
    own = {id(node) for node in members}
    strays = [
        node
        for node in nodes
        if id(node) not in own
        and (node.gpus or not members[0].gpus)
        and told.items() <= node.labels.items()
    ]
    keeps_out: dict[frozenset[int], tuple[str, str]] = {}
    for key, value in sorted(_lasting(members[0]).items(), key=lambda label: _rank(label[0])):
        if all(node.labels.get(key) == value for node in members):
            out = frozenset(i for i, node in enumerate(strays) if node.labels.get(key) != value)
            keeps_out.setdefault(out, (key, value))
    everyone = frozenset(range(len(strays)))
    if everyone.difference(*keeps_out):
        return None
    return next(
        told | dict(keeps_out[out] for out in chosen)
        for size in range(len(keeps_out) + 1)
        for chosen in combinations(keeps_out, size)
        if not everyone.difference(*chosen)
    )


def _told(node: NodeFacts) -> dict[str, str]:
    labels = _lasting(node)
    return {key: labels[key] for key in _TELLING if labels.get(key, _NONE) != _NONE}


def _lasting(node: NodeFacts) -> dict[str, str]:
    """Give the labels that a spec can ask for, tomorrow too: Ray takes empty ones, a spec none."""
    return {
        key: value
        for key, value in node.labels.items()
        if key != _UNTIL_RESTART and is_key(key) and is_value(value)
    }


def _rank(key: str) -> tuple[int, str]:
    """Order labels by how well they say why nodes differ; versions change and come last."""
    if key in _USUAL:
        return _USUAL.index(key), key
    owner = key.rpartition("/")[0]
    order = [owner not in {_OURS, _RAYS}, owner == _RAYS, key == _HOST, True]
    return len(_USUAL) + order.index(True), key


def _entry(kind: _Kind, labels: Mapping[str, str], names: set[str]) -> str:
    comment = ", ".join(dict.fromkeys(node.name for node in kind.nodes))
    if not labels and not kind.has_gpu:
        return f"  - {{name: cpu, threads: {kind.threads}}}  # {comment}"
    words = [value for value in labels.values() if value != _NONE]
    wanted = [*words, "gpu" if kind.has_gpu else "node"][0]
    # In quotes: YAML could take 5 or no for something else than text.
    keys = [f"name: {json.dumps(_new_name(wanted, names))}"]
    accelerator = labels.get(_ACCELERATOR, _NONE)
    if kind.has_gpu and accelerator != _NONE:
        keys += [f"accelerator: {json.dumps(accelerator)}"]
        labels = {key: value for key, value in labels.items() if key != _ACCELERATOR}
    elif kind.has_gpu:
        keys += ["gpus: 1"]
    if labels:
        asked = ", ".join(f"{_key(key)}: {json.dumps(value)}" for key, value in labels.items())
        keys += [f"labels: {{{asked}}}"]
    return f"  - {{{', '.join(keys)}, threads: {kind.threads}}}  # {comment}"


def _comment(nodes: Sequence[NodeFacts], why: str) -> list[str]:
    names = ", ".join(dict.fromkeys(node.name for node in nodes))
    return [f"  # {names}: {why}"] if nodes else []


def _key(key: str) -> str:
    """Quote a key that YAML could take for a number or a boolean; none of those has a slash."""
    return key if "/" in key else json.dumps(key)


def _runtimes(labels: Mapping[str, str]) -> list[str]:
    return [f"{name}={labels[OURS + name]}" for name in RUNTIMES if OURS + name in labels]


def _new_name(wanted: str, taken: set[str]) -> str:
    """Give a name that no other device has: what is wanted, numbered if need be."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name
