"""`qb backends --check`: every native entry of the support matrix is run."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Ref
from qb_cluster.dispatch.support_check import DIGITS_MODELS, check_spec, claims, kinds_spec
from qb_cluster.errors import NothingRunsError
from qb_cluster.launch import launch
from qb_cluster.plan.support_matrix import Entry
from qb_cluster.report.progress import RunProgress
from qb_cluster.spec import load_spec
from qb_cluster.store.reading import read_results
from qb_cluster.terminal import messages, output


def check_claims(entries: Sequence[Entry]) -> bool:
    """Run every native entry on digits, and nets of every kind of layer; tells whether all held.

    Raises:
        NothingRunsError: there was none to run.
    """
    console = output()
    names = dict.fromkeys(entry.backend for entry in entries)
    made = [plugins.make("backend", Ref(name, name)) for name in names]
    schemes = dict.fromkeys(entry.scheme.target for entry in entries)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in DIGITS_MODELS:
            texts = {kind: check_spec(kind, made, schemes), f"{kind}-kinds": kinds_spec(kind, made)}
            for name, text in texts.items():
                if text is not None:
                    spec = Path(folder, f"{name}.yaml")
                    spec.write_text(text, encoding="utf-8")
                    with RunProgress(messages()) as progress:
                        launch(load_spec(spec), str(Path(folder, name)), progress, is_kept=False)
                    tables.append(read_results(str(Path(folder, name))))
    handles = {backend.name: getattr(backend, "handles", {}) for backend in made}
    checked = list(claims(entries, pd.concat(tables), handles)) if tables else []
    if not checked:
        raise NothingRunsError("nothing was checked: no backend here runs the digits models")
    held = True
    for claim in checked:
        entry = claim.entry
        words = ", ".join(f"{model} {status}" for model, status in claim.statuses.items())
        if not claim.holds or set(claim.statuses.values()) != {"ok"}:
            mark = "as warned" if claim.holds else "BROKEN CLAIM"
            console.print(
                f"{mark}: {entry.backend} {entry.scheme.label} {entry.bits}: {words}",
                highlight=False,
                markup=False,
            )
        held = held and claim.holds
    console.print("every native entry holds" if held else "some native entries do not hold")
    return held
