"""Before anything starts: is there a node for every device?

Ray waits silently and forever for what does not exist, so this is asked first. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Final

from qb_cluster.contracts import Device

_RAYS_OWN: Final = "ray.io/"
_LISTED: Final = 12  # labels that a sentence spells out
_NEAR: Final = 0.75  # of keys, which often share a prefix like qb/


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says about itself.

    Attributes:
        name: its host name, or whatever people know it by.
        cores: that workers may use.
        labels: what it is, such as ``qb/board: rpi5``.
        gpus: that workers may use.
    """

    name: str
    cores: int
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0


def unmet(devices: Iterable[Device], nodes: Sequence[NodeFacts]) -> list[str]:
    """Tell which devices no node can serve: one sentence each, none where all is well.

    A node serves a device when it has all of its labels, a GPU where the device has one, and at
    least as many cores as the device has threads. Boards are no nodes; those that prepare for
    them are.
    """
    problems: list[str] = []
    for device in dict.fromkeys(devices):
        if device.ssh is None and (why := _unmet(device, nodes)) is not None:
            problems.append(why)
        host = replace(device.host, name=device.name)
        if device.prepared_on and (why := _unmet(host, nodes)) is not None:
            problems.append(f"prepared_on of {why}")
    return problems


def _unmet(device: Device, nodes: Sequence[NodeFacts]) -> str | None:
    if not nodes:
        return f"device '{device.name}': there is no node"
    fitting = [node for node in nodes if not _missing(device, node)]
    if not fitting:
        return f"device '{device.name}': {_why_none_fits(device, nodes)}"
    such = f" with {_spelt(device.labels)}" if device.labels else ""
    if device.gpus:
        fitting = [node for node in fitting if node.gpus]
        if not fitting:
            return (
                f"device '{device.name}' asks for a GPU and no node{such} has one; install "
                "qb-cluster[nvidia] where it is, and start a cluster's Ray with what `qb node` says"
            )
    largest = max(fitting, key=lambda node: node.cores)
    if largest.cores >= device.threads:
        return None
    return (
        f"device '{device.name}' asks for {device.threads} threads and the largest node{such} has "
        f"{largest.cores} core{'' if largest.cores == 1 else 's'}; lower devices: threads"
    )


def _missing(device: Device, node: NodeFacts) -> list[tuple[str, str]]:
    return [(key, value) for key, value in device.labels if node.labels.get(key) != value]


def _why_none_fits(device: Device, nodes: Sequence[NodeFacts]) -> str:
    for label in device.labels:
        if not any(label in node.labels.items() for node in nodes):
            return f"no node has label {_spelt([label])}{_known(label, nodes)}"
    best = min(nodes, key=lambda node: len(_missing(device, node)))
    return (
        f"no node has {_spelt(device.labels)} at once; "
        f"'{best.name}' lacks {_spelt(_missing(device, best))}"
    )


def _known(label: tuple[str, str], nodes: Sequence[NodeFacts]) -> str:
    """End a sentence with the nearest label that a node has, or with all that are in question."""
    key, value = label
    have = {
        one
        for node in nodes
        for one in node.labels.items()
        if key.startswith(_RAYS_OWN) or not one[0].startswith(_RAYS_OWN)
    }
    if not have:
        return "; the nodes have no labels"
    # A whole label is near any other of its key, so the part that is wrong is compared.
    of_key = {one for one in have if one[0] == key}
    if of_key:
        near = [f"{key}={v}" for v in get_close_matches(value, [v for _, v in of_key], n=1)]
    else:
        near = get_close_matches(key, {k for k, _ in have}, n=1, cutoff=_NEAR)
    if near:
        return f"; did you mean {near[0]}?"
    listed = sorted(of_key or have)
    more = ", …" if len(listed) > _LISTED else ""
    return f"; known: {_spelt(listed[:_LISTED])}{more}"


def _spelt(labels: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels)
