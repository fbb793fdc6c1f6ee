"""A mixed-precision scheme for a backend, proposed from what a run has measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from qb_cluster.contracts import FLOAT, Bits, Calibration, Quantization, Ref
from qb_cluster.contracts.coverage import LayerKind
from qb_cluster.errors import RunFolderError
from qb_cluster.quantization.storage import usual_bytes
from qb_cluster.report.choices import Storage
from qb_cluster.report.comparison import CONDITIONS
from qb_cluster.report.proposal import Proposal, propose
from qb_cluster.report.sensitivity import sensitivity
from qb_cluster.spec import (
    NamedBackend,
    NamedScheme,
    ask_support,
    named_backend,
    named_scheme,
    not_installed,
)
from qb_cluster.spec.document import parse
from qb_cluster.spec.schema import SweepKeys, label_for
from qb_cluster.storage import Folder
from qb_cluster.store.reading import StoredRun, read_run, read_table

_WAYS: Final = ("backend", "dataset", *(n for n in CONDITIONS if n.startswith("calibration_")))
"""In what the measurements of one proposal may not differ."""
_NAMED: Final = 6
"""Layers that a comment lists."""


def propose_from_run(
    run_dir: str | Path,
    model: str,
    scheme: str,
    budget_bits: float | None,
    budget_sqnr_db: float | None,
    backend: str | None = None,
) -> str:
    """Propose a scheme from the layers that a run has measured.

    Args:
        run_dir: the run folder.
        model: label of the model.
        scheme: label of the scheme whose cells were measured.
        budget_bits: bits per weight at most.
        budget_sqnr_db: SQNR of the outputs at least.
        backend: label or name of the backend that will run it; ``None`` is the one that measured.

    Returns:
        YAML: an entry for ``schemes``, under comments that say what to expect of it.

    Raises:
        RunFolderError: it is no run folder, it has no such measurements, or has them in several
            ways, an older QuantBench measured them, or ``propose`` refuses.
        PlugInError: there is no such backend.
    """
    run = read_run(run_dir)
    ours = _measured(run, run_dir, model, scheme)
    layers = run.layers[run.layers["cell_id"].isin(ours["cell_id"])]
    if layers["kind"].isna().all():
        raise RunFolderError(
            f"{run_dir}: an older QuantBench measured these layers, and noted neither their kinds "
            "nor their shapes; run the sweep into a new folder"
        )
    name, options = _entry(run.folder, "schemes", scheme)
    made = named_scheme(_ref(scheme, name, options))
    calibration = Calibration() if made.is_calibrated else None
    target = _backend(run.folder, backend or str(ours["backend"].iloc[0]))
    try:
        proposal = propose(
            layers,
            budget_bits=budget_bits,
            budget_sqnr_db=budget_sqnr_db,
            storage=storage_of(target, made, calibration, _parameters(run.results, ours, target)),
        )
    except ValueError as error:
        raise RunFolderError(f"{run_dir}: {target.ref.label}: {error}") from error
    label = f"mixed-{proposal.expected_bits_per_weight:.1f}bit"
    text = proposal.to_yaml(name, label, options)
    return f"{_comments(proposal, model, scheme, target.ref.label)}{text}"


def _measured(run: StoredRun, run_dir: str | Path, model: str, scheme: str) -> pd.DataFrame:
    found = sensitivity(run.results, run.layers)
    ours = found[(found["model"] == model) & (found["scheme"] == scheme)]
    if ours.empty:
        pairs = found[["model", "scheme"]].drop_duplicates().itertuples(index=False)
        known = ", ".join(f"{pair.model} under {pair.scheme}" for pair in pairs) or "nothing"
        raise RunFolderError(
            f"{run_dir}: no layers of {model} under {scheme} were measured, but of {known}; "
            "layers are measured in simulated cells with `measure: {layers: true}`"
        )
    ways = ours[list(_WAYS)].drop_duplicates().to_dict("records")
    if len(ways) > 1:
        listed = "; ".join(
            ", ".join(str(value) for value in way.values() if pd.notna(value)) for way in ways
        )
        raise RunFolderError(
            f"{run_dir}: layers of {model} under {scheme} were measured in {len(ways)} ways "
            f"({listed}); run a sweep with one of them"
        )
    return ours


def _parameters(results: pd.DataFrame, ours: pd.DataFrame, target: NamedBackend) -> int:
    """Give the parameters of the float model: as the target stores it, if that was run too."""
    floats = results[(results["scheme"] == FLOAT) & results["bits_per_weight"].notna()]
    floats = floats[floats["model"] == ours["model"].iloc[0]]
    for backend in (target.ref.label, ours["backend"].iloc[0]):
        rows = floats[floats["backend"] == backend]
        if not rows.empty:
            parameters = 8 * rows["weight_bytes"].iloc[0] / rows["bits_per_weight"].iloc[0]
            return round(float(parameters))
    return 0


def storage_of(
    target: NamedBackend, scheme: NamedScheme, calibration: Calibration | None, parameters: int
) -> Storage:
    """Tell how a backend stores what it quantizes natively.

    Args:
        target: the backend. One that does not say packs integers, with a float32 a scale.
        scheme: what weights are quantized by.
        calibration: given exactly for static schemes.
        parameters: of the whole float model.
    """

    def asked(bits: Bits) -> Quantization:
        return Quantization(scheme.scheme, bits, "native", calibration)

    def refusal(bits: Bits) -> str:
        missing = not_installed(target)
        support = ask_support(target, asked(bits))
        return missing or ("" if support.supported else support.reason)

    def stored_bytes(kind: LayerKind, shape: tuple[int, ...], bits: Bits) -> float | None:
        own = getattr(target.backend, "stored_bytes", None)
        if own is None:
            return usual_bytes(shape, scheme.scheme, bits.weight)
        found: float | None = own(kind, shape, asked(bits))
        return found

    return Storage(parameters, stored_bytes, refusal)


def _backend(run: Folder, label: str) -> NamedBackend:
    return named_backend(_ref(label, *_entry(run, "backends", label)))


def _ref(label: str, target: str, options: Mapping[str, Any]) -> Ref:
    return Ref(label, target, json.dumps(options, sort_keys=True, separators=(",", ":")))


def _entry(run: Folder, axis: str, label: str) -> tuple[str, Mapping[str, Any]]:
    """Find the name and options of a scheme or backend in the specs that were run."""
    for text in read_table(run, "sweeps", [])["spec_text"]:
        keys = SweepKeys.model_validate(parse(text, Path(str(run))).data)
        for entry in getattr(keys, axis):
            if not isinstance(entry, str) and label_for(entry) == label:
                return entry.name, entry.options
    return label, {}


def _comments(proposal: Proposal, model: str, scheme: str, backend: str) -> str:
    bits, decibels = proposal.expected_bits_per_weight, proposal.expected_sqnr_db
    head = f"{model} under {scheme} on {backend}: {bits:.2f} bits per weight"
    lines = [f"{head}, scales and floats counted, and {decibels:.1f} dB of SQNR to be expected."]
    if widest := _widest(proposal):
        lines.append(
            f"Every layer that was measured has bits of its own; `bits: [{widest}]` makes one "
            "cell of it."
        )
    for kind, layers in proposal.left_float.items():
        more = ", …" if len(layers) > _NAMED else ""
        lines.append(
            f"{backend} leaves {kind} layers float at these widths: {', '.join(layers[:_NAMED])}"
            f"{more}."
        )
    return "".join(f"# {line}\n" for line in lines)


def _widest(proposal: Proposal) -> str:
    widths = [bits for bits in proposal.layers.values() if bits != FLOAT]
    return max(widths, key=lambda bits: Bits.parse(bits).weight, default="")
