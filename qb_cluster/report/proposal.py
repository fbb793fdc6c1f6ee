"""A mixed-precision scheme, proposed from what each layer's quantization was measured to cost."""

import glob
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from qb_cluster.contracts import Bits
from qb_cluster.errors import RunFolderError
from qb_cluster.report.comparison import CONDITIONS
from qb_cluster.report.sensitivity import sensitivity
from qb_cluster.spec.document import parse
from qb_cluster.spec.schema import SweepKeys, label_for
from qb_cluster.storage import Folder
from qb_cluster.store.reading import read_run, read_table

_WAYS: Final = ("backend", "dataset", *(n for n in CONDITIONS if n.startswith("calibration_")))
"""In what the measurements of one proposal may not differ."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Bits for each layer, and what to expect of them.

    Attributes:
        layers: ``wN`` or ``wNaM`` by layer, in the order of the model.
        expected_bits_per_weight: Σ parameters × bits ÷ Σ parameters; without scales.
        expected_sqnr_db: of the outputs against float, if the layers' noises are independent:
            -10 log10 Σ 10^(-SQNRᵢ/10).
    """

    layers: dict[str, str]
    expected_bits_per_weight: float
    expected_sqnr_db: float

    def to_yaml(self, name: str, label: str, options: Mapping[str, Any] | None = None) -> str:
        """Write the entry of a sweep's ``schemes`` that runs it.

        Args:
            name: the scheme whose cells were measured, such as ``weight_only``.
            label: what tables shall call this one.
            options: the measured scheme's options. Of its ``layers`` those stay that name others
                than the layers proposed for: the first pattern that matches counts.
        """
        options = options or {}
        # Names are patterns there, and a layer's may hold a character that has a meaning.
        layers = {glob.escape(layer): bits for layer, bits in self.layers.items()}
        others = {p: bits for p, bits in options.get("layers", {}).items() if p not in layers}
        entry = {"name": name, "label": label, "options": {**options, "layers": layers | others}}
        text = io.StringIO()
        yaml = YAML()
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.dump([entry], text)
        return text.getvalue()


def propose(
    layers: pd.DataFrame, *, budget_bits: float | None, budget_sqnr_db: float | None
) -> Proposal:
    """Lower layers one after another, each time where it costs the least noise a bit saved.

    All layers start at the highest width that was measured of them. A step may pass over widths.
    With a budget in bits, steps end when it is met; with one in decibels, when none is left that
    keeps to it; with both, when the bits are met, and no step breaks the decibels. The last step
    may have saved more bits than asked for; they are given back where they help most.

    Args:
        layers: rows of the table ``layers`` of simulated cells of one model and scheme that
            differ in bits alone; those of mode ``only`` count. A layer whose bits the scheme
            fixes comes with each cell, and counts once.
        budget_bits: bits per weight at most.
        budget_sqnr_db: SQNR of the outputs at least.

    Raises:
        ValueError: no budget is given, there are no measurements, a layer was measured twice at
            the same bits (they are of several models or schemes), a layer has no finite SQNR, or
            the budgets cannot be met: then the message says what can.
    """
    if budget_bits is None and budget_sqnr_db is None:
        raise ValueError("give a budget: bits per weight at most, or decibels of SQNR at least")
    choices = _choices(layers)
    chosen = {layer: len(widths.bits) - 1 for layer, widths in choices.items()}
    most_noise = np.inf if budget_sqnr_db is None else 10 ** (-budget_sqnr_db / 10)
    start = _proposal(choices, chosen)
    if budget_sqnr_db is not None and start.expected_sqnr_db < budget_sqnr_db:
        raise ValueError(
            f"with every layer at its highest width {start.expected_sqnr_db:.1f} dB are expected, "
            f"less than the {budget_sqnr_db:g} dB asked for; measure higher widths, or ask for less"
        )
    while budget_bits is None or _bits_per_weight(choices, chosen) > budget_bits:
        step = _cheapest(choices, chosen, most_noise)
        if not step:
            break
        chosen |= step
    while budget_bits is not None and (step := _refund(choices, chosen, budget_bits)):
        chosen |= step
    found = _proposal(choices, chosen)
    if budget_bits is not None and found.expected_bits_per_weight > budget_bits:
        within = "" if budget_sqnr_db is None else f" without falling below {budget_sqnr_db:g} dB"
        raise ValueError(
            f"{found.expected_bits_per_weight:.2f} bits per weight is the least that was found"
            f"{within}, more than the {budget_bits:g} asked for; measure lower widths, or ask "
            "for less"
        )
    return found


def propose_from_run(
    run_dir: str | Path,
    model: str,
    scheme: str,
    budget_bits: float | None,
    budget_sqnr_db: float | None,
) -> str:
    """Propose a scheme from the layers that a run has measured.

    Args:
        run_dir: the run folder.
        model: label of the model.
        scheme: label of the scheme whose cells were measured.
        budget_bits: bits per weight at most.
        budget_sqnr_db: SQNR of the outputs at least.

    Returns:
        YAML: an entry for ``schemes``, under comments that say what to expect of it.

    Raises:
        RunFolderError: it is no run folder, it has no such measurements, or has them in several
            ways, or ``propose`` refuses.
    """
    run = read_run(run_dir)
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
    layers = run.layers[run.layers["cell_id"].isin(ours["cell_id"])]
    try:
        proposal = propose(layers, budget_bits=budget_bits, budget_sqnr_db=budget_sqnr_db)
    except ValueError as error:
        raise RunFolderError(f"{run_dir}: {error}") from error
    name, options = _scheme_entry(run.folder, scheme)
    bits = proposal.expected_bits_per_weight
    return (
        f"# {model} under {scheme}: {bits:.2f} bits per weight, scales not counted, and "
        f"{proposal.expected_sqnr_db:.1f} dB of SQNR to be expected.\n"
        f"# Every layer that was measured has bits of its own; `bits: [{_widest(proposal)}]` "
        "makes one cell of it.\n" + proposal.to_yaml(name, f"mixed-{bits:.1f}bit", options)
    )


def _scheme_entry(run: Folder, label: str) -> tuple[str, Mapping[str, Any]]:
    """Find the name and options of a scheme in the specs that were run."""
    for text in read_table(run, "sweeps", [])["spec_text"]:
        for entry in SweepKeys.model_validate(parse(text, Path(str(run))).data).schemes:
            if label_for(entry) == label and not isinstance(entry, str):
                return entry.name, entry.options
    return label, {}


def _widest(proposal: Proposal) -> str:
    return max(proposal.layers.values(), key=lambda bits: Bits.parse(bits).weight)


@dataclass(frozen=True, slots=True)
class _Widths:
    """What one layer may be quantized to, ascending in weight bits.

    Attributes:
        parameters: of its weight.
        bits: the bit-widths.
        noise: of the outputs at each, as a share of the signal's power.
    """

    parameters: int
    bits: tuple[Bits, ...]
    noise: tuple[float, ...]


def _choices(layers: pd.DataFrame) -> dict[str, _Widths]:
    only = layers[layers["mode"] == "only"]
    if only.empty:
        raise ValueError(
            "no layer was measured; run simulated cells with `measure: {layers: true}`"
        )
    only = only.drop_duplicates(["layer", "bits", "sqnr_db"])
    twice = only[only.duplicated(["layer", "bits"])]
    if not twice.empty:
        layer, bits = twice.iloc[0][["layer", "bits"]]
        raise ValueError(
            f"layer '{layer}' was measured twice at {bits}: give the cells of one model, scheme "
            "and calibration"
        )
    choices = {}
    for layer in only["layer"].unique():  # in the order of the model
        rows = only[only["layer"] == layer]
        noise = 10 ** (-rows["sqnr_db"].to_numpy(np.float64) / 10)
        if not np.isfinite(noise).all():
            raise ValueError(f"layer '{layer}' has no finite SQNR at some width; leave it out")
        best: dict[int, tuple[float, Bits]] = {}  # of equal weight bits the one with least noise
        for bits, power in zip(map(Bits.parse, rows["bits"]), noise, strict=True):
            best[bits.weight] = min(
                best.get(bits.weight, (np.inf, bits)),
                (float(power), bits),
                key=lambda pair: pair[0],
            )
        ascending = [best[weight] for weight in sorted(best)]
        choices[str(layer)] = _Widths(
            int(rows["parameters"].iloc[0]),
            tuple(bits for _, bits in ascending),
            tuple(power for power, _ in ascending),
        )
    return choices


def _cheapest(
    choices: Mapping[str, _Widths], chosen: Mapping[str, int], most_noise: float
) -> dict[str, int]:
    """Find the step down that adds the least noise a saved bit and keeps to the noise."""
    noise = sum(widths.noise[chosen[layer]] for layer, widths in choices.items())
    steps = []
    for layer, widths in choices.items():
        now = chosen[layer]
        for lower in range(now):
            added = widths.noise[lower] - widths.noise[now]
            saved = widths.parameters * (widths.bits[now].weight - widths.bits[lower].weight)
            if noise + added <= most_noise and saved > 0:
                steps.append((added / saved, layer, lower))
    return _step(min(steps, default=None))


def _refund(
    choices: Mapping[str, _Widths], chosen: Mapping[str, int], budget_bits: float
) -> dict[str, int]:
    """Find the step up that removes the most noise and keeps to the bits."""
    steps = []
    for layer, widths in choices.items():
        now = chosen[layer]
        for higher in range(now + 1, len(widths.bits)):
            removed = widths.noise[now] - widths.noise[higher]
            bits = _bits_per_weight(choices, {**chosen, layer: higher})
            if bits <= budget_bits and removed > 0:
                steps.append((-removed, layer, higher))
    return _step(min(steps, default=None))


def _step(found: tuple[float, str, int] | None) -> dict[str, int]:
    return {} if found is None else {found[1]: found[2]}


def _bits_per_weight(choices: Mapping[str, _Widths], chosen: Mapping[str, int]) -> float:
    parameters = sum(widths.parameters for widths in choices.values())
    bits = sum(w.parameters * w.bits[chosen[layer]].weight for layer, w in choices.items())
    return bits / parameters


def _proposal(choices: Mapping[str, _Widths], chosen: Mapping[str, int]) -> Proposal:
    noise = sum(widths.noise[chosen[layer]] for layer, widths in choices.items())
    return Proposal(
        {layer: str(widths.bits[chosen[layer]]) for layer, widths in choices.items()},
        _bits_per_weight(choices, chosen),
        float(-10 * np.log10(noise)) if noise > 0 else float("inf"),
    )
