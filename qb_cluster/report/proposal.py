"""A mixed-precision scheme, proposed from what each layer's quantization was measured to cost."""

import glob
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from qb_cluster.contracts import FLOAT
from qb_cluster.report.choices import Choice, Storage, bits_per_weight, choices


@dataclass(frozen=True, slots=True)
class Proposal:
    """Bits for each layer, and what to expect of them.

    Attributes:
        layers: ``wN``, ``wNaM`` or ``float`` by layer, in the order of the model.
        expected_bits_per_weight: what the column ``bits_per_weight`` will say: bits of all
            parameters, scales included, ÷ parameters.
        expected_sqnr_db: of the outputs against float, if the layers' noises are independent:
            -10 log10 Σ 10^(-SQNRᵢ/10).
        left_float: names of layers that the backend leaves float at every width, by their kind.
    """

    layers: dict[str, str]
    expected_bits_per_weight: float
    expected_sqnr_db: float
    left_float: Mapping[str, tuple[str, ...]]

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
    layers: pd.DataFrame,
    *,
    budget_bits: float | None,
    budget_sqnr_db: float | None,
    storage: Storage | None = None,
) -> Proposal:
    """Lower layers one after another, each time where it costs the least noise a byte saved.

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
        storage: how the artifact stores the model; ``None`` counts the bits of the layers alone.

    Raises:
        ValueError: no budget is given, there are no measurements, a layer was measured twice at
            the same bits (they are of several models or schemes), a layer has no finite SQNR, or
            the budgets cannot be met: then the message says what can.
    """
    if budget_bits is None and budget_sqnr_db is None:
        raise ValueError("give a budget: bits per weight at most, or decibels of SQNR at least")
    search = _Search(choices(layers, storage), storage)
    chosen = {choice: len(choice.bits) - 1 for choice in search.choices}
    most_noise = np.inf if budget_sqnr_db is None else 10 ** (-budget_sqnr_db / 10)
    start = search.proposal(chosen)
    if budget_sqnr_db is not None and start.expected_sqnr_db < budget_sqnr_db:
        raise ValueError(
            f"with every layer at its highest width {start.expected_sqnr_db:.1f} dB are expected, "
            f"less than the {budget_sqnr_db:g} dB asked for; measure higher widths, or ask for less"
        )
    while budget_bits is None or search.bits(chosen) > budget_bits:
        step = search.cheapest(chosen, most_noise)
        if not step:
            break
        chosen |= step
    while budget_bits is not None and (step := search.refund(chosen, budget_bits)):
        chosen |= step
    found = search.proposal(chosen)
    if budget_bits is not None and found.expected_bits_per_weight > budget_bits:
        within = "" if budget_sqnr_db is None else f" without falling below {budget_sqnr_db:g} dB"
        raise ValueError(
            f"{found.expected_bits_per_weight:.2f} bits per weight is the least that was found"
            f"{within}, more than the {budget_bits:g} asked for; measure lower widths, or ask "
            "for less"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Search:
    choices: Sequence[Choice]
    storage: Storage | None

    def bits(self, chosen: Mapping[Choice, int]) -> float:
        return bits_per_weight(self.choices, chosen, self.storage)

    def cheapest(self, chosen: Mapping[Choice, int], most_noise: float) -> dict[Choice, int]:
        """Find the step down that adds the least noise a saved byte and keeps to the noise."""
        noise = _noise(chosen)
        steps = []
        for number, choice in enumerate(self.choices):
            now = chosen[choice]
            for lower in range(now):
                added = choice.noise[lower] - choice.noise[now]
                saved = choice.stored[now] - choice.stored[lower]
                if noise + added <= most_noise and saved > 0:
                    steps.append((added / saved, choice.layers, number, lower))
        return self._step(steps)

    def refund(self, chosen: Mapping[Choice, int], budget_bits: float) -> dict[Choice, int]:
        """Find the step up that removes the most noise and keeps to the bits."""
        steps = []
        for number, choice in enumerate(self.choices):
            now = chosen[choice]
            for higher in range(now + 1, len(choice.bits)):
                removed = choice.noise[now] - choice.noise[higher]
                if removed > 0 and self.bits({**chosen, choice: higher}) <= budget_bits:
                    steps.append((-removed, choice.layers, number, higher))
        return self._step(steps)

    def _step(self, steps: Sequence[tuple[float, tuple[str, ...], int, int]]) -> dict[Choice, int]:
        if not steps:
            return {}
        _, _, number, width = min(steps)
        return {self.choices[number]: width}

    def proposal(self, chosen: Mapping[Choice, int]) -> Proposal:
        noise = _noise(chosen)
        left: dict[str, tuple[str, ...]] = {}
        for choice in self.choices:
            if not choice.bits:
                kinds = " and ".join(choice.kinds)
                left[kinds] = (*left.get(kinds, ()), *choice.layers)
        return Proposal(
            {
                layer: str(choice.bits[chosen[choice]]) if choice.bits else FLOAT
                for choice in self.choices
                for layer in choice.layers
            },
            self.bits(chosen),
            float(-10 * np.log10(noise)) if noise > 0 else float("inf"),
            left,
        )


def _noise(chosen: Mapping[Choice, int]) -> float:
    return sum(choice.noise[width] for choice, width in chosen.items() if choice.bits)
