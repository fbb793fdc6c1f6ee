"""Checking the support matrix: every entry that claims to be native is run on digits."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qb_cluster.contracts import Backend
from qb_cluster.contracts.coverage import Handlings, LayerKind
from qb_cluster.plan.support_matrix import USUAL_BITS, Entry

DIGITS_MODELS: Final = {
    "torch": ("digits-cnn", "digits-mlp"),
    "keras": ("digits-keras-cnn", "digits-keras-mlp"),
}


KIND_MODELS: Final[dict[str, dict[str, LayerKind]]] = {
    "torch": {
        "qb_pytorch.digits_kinds:embedding": "embedding",
        "qb_pytorch.digits_kinds:conv_transpose": "conv_transpose",
        "qb_pytorch.digits_kinds:recurrent": "recurrent",
        "qb_pytorch.digits_kinds:attention": "attention",
    }
}
"""Nets with one kind of layer that the digits models lack, by kind of model."""
_KIND_SCHEMES: Final = ("weight_only", "dynamic", "static")
_KIND_BITS: Final = ("w8", "w8a8")


@dataclass(frozen=True, slots=True)
class Claim:
    """What an entry of the matrix says, and what running it showed.

    Attributes:
        statuses: of its cells, by model.
        parts: models with a kind of layer that the backend says it does not compute in integers,
            or whose weights stay float.
    """

    entry: Entry
    statuses: dict[str, str]
    parts: frozenset[str] = frozenset()

    @property
    def holds(self) -> bool:
        """Whether it ran natively; a float artifact is what a caveat may have warned of."""
        warned = {"ok", "partial", "not_applied"}
        return bool(self.statuses) and all(
            status == "ok"
            or (status in warned and (bool(self.entry.native.reason) or model in self.parts))
            for model, status in self.statuses.items()
        )


def check_spec(kind: str, backends: Sequence[Backend], schemes: Iterable[str]) -> str | None:
    """Write the sweep that runs every native entry on the digits models of one kind.

    Args:
        kind: ``torch`` or ``keras``.
        backends: those to check.
        schemes: names of schemes.

    Returns:
        YAML; ``None`` when no backend takes such models.
    """
    names = [backend.name for backend in backends if kind in backend.takes]
    if not names:
        return None
    return f"""
sweep: support-{kind}
models: [{", ".join(DIGITS_MODELS[kind])}]
datasets: [digits]
schemes: [{", ".join(schemes)}]
bits: [{", ".join(map(str, USUAL_BITS))}]
backends: [{", ".join(names)}]
execution: native
exclude: [{{execution: unsupported}}]
measure: {{latency: false}}
"""


def kinds_spec(kind: str, backends: Sequence[Backend]) -> str | None:
    """Write the sweep that runs a net of each kind of layer, in 8 bits.

    Args:
        kind: of model, ``torch`` or ``keras``.
        backends: those to check.

    Returns:
        YAML; ``None`` when there are no such nets, or no backend takes them.
    """
    names = [backend.name for backend in backends if kind in backend.takes]
    if not names or kind not in KIND_MODELS:
        return None
    models = (f'{{name: "{name}", label: {layer}}}' for name, layer in KIND_MODELS[kind].items())
    return f"""
sweep: kinds-{kind}
models: [{", ".join(models)}]
datasets: [digits]
schemes: [{", ".join(_KIND_SCHEMES)}]
bits: [{", ".join(_KIND_BITS)}]
backends: [{", ".join(names)}]
execution: native
measure: {{latency: false}}
"""


def claims(
    entries: Iterable[Entry], results: pd.DataFrame, handles: Mapping[str, Handlings]
) -> Iterator[Claim]:
    """Hold native entries against the rows of the sweeps that ran them.

    Args:
        entries: of the support matrix.
        results: rows of those sweeps.
        handles: what backends say of kinds of layers, by their names.
    """
    statuses = {
        key: dict(zip(rows["model"], rows["status"], strict=True))
        for key, rows in results.groupby(["backend", "scheme", "bits"])
    }
    for entry in entries:
        if entry.native.supported:
            key = (entry.backend, entry.scheme.label, str(entry.bits))
            parts = _parts(handles.get(entry.backend, {}), entry.scheme.label)
            yield Claim(entry, statuses.get(key, {}), parts)


def _parts(handles: Handlings, scheme: str) -> frozenset[str]:
    """Name the nets of kinds that a scheme does not handle whole."""
    activations = "none" if scheme == "weight_only" else scheme
    whole = "weights rounded" if activations == "none" else "integers"
    kinds = handles.get(activations, {})
    return frozenset(kind for kind, handling in kinds.items() if handling != whole)
