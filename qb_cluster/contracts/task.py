"""What a worker is asked to do: one stage of one cell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qb_cluster.contracts.cell import Cell
from qb_cluster.contracts.outcome import Outcome, QualityResult, Stage


@dataclass(frozen=True, slots=True)
class Task:
    """One stage of one cell, with what earlier stages left for it.

    Attributes:
        stage: ``content`` only digests what a baseline names, to see whether it is still the same,
            and ``runtime`` asks a device apart from its converters what runs artifacts there;
            ``prepare`` makes the artifact where the converters are, for such a device to run.
        attempt: 1 for the first try.
        cores: the cores it may use; as many as the device has threads.
        baseline: what the baseline's quality stage left; ``None`` in the baseline's own.
        quality: what the cell's own quality stage left; latency stages only.
        prepared: how the prepare stage of the cell, or of one that differs in its device alone,
            ended; quality stages on boards and other devices with a runtime alone only.
        preparer: environment of whoever prepared, where that is not whoever runs it.
    """

    cell: Cell
    stage: Stage
    attempt: int
    cores: tuple[int, ...]
    baseline: QualityResult | None = None
    quality: QualityResult | None = None
    prepared: Outcome | None = None
    preparer: Mapping[str, Any] | None = None
