"""Checking the support matrix: every entry that claims to be native is run on digits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qb_cluster.contracts import Backend
from qb_cluster.plan.support_matrix import USUAL_BITS, Entry

DIGITS_MODELS: Final = {
    "torch": ("digits-cnn", "digits-mlp"),
    "keras": ("digits-keras-cnn", "digits-keras-mlp"),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """What an entry of the matrix says, and what running it showed.

    Attributes:
        statuses: of its cells, by model.
    """

    entry: Entry
    statuses: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether it ran natively; a float artifact is what a caveat may have warned of."""
        warned = {"ok", "partial", "not_applied"} if self.entry.native.reason else {"ok"}
        return bool(self.statuses) and set(self.statuses.values()) <= warned


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


def claims(entries: Iterable[Entry], results: pd.DataFrame) -> Iterator[Claim]:
    """Hold native entries against the rows of the sweeps that ran them."""
    statuses = {
        key: dict(zip(rows["model"], rows["status"], strict=True))
        for key, rows in results.groupby(["backend", "scheme", "bits"])
    }
    for entry in entries:
        if entry.native.supported:
            key = (entry.backend, entry.scheme.label, str(entry.bits))
            yield Claim(entry, statuses.get(key, {}))
