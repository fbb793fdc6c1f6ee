"""Plug-ins and a worker that do nothing: what is left of a sweep is the driver's own cost."""

import functools
from datetime import UTC, datetime
from typing import Any

from qb_cluster.catalog.content import cell_key, scheme_digest
from qb_cluster.contracts import (
    Arrays,
    Artifact,
    ArtifactFacts,
    ArtifactRef,
    Content,
    Executable,
    LoadModel,
    Outcome,
    QualityResult,
    Quantization,
    Support,
    Task,
)
from qb_cluster.nodes import environment

DATASETS = 5
WIDTHS = range(2, 17)
CELLS_OF_A_MODEL = DATASETS * (1 + len(WIDTHS) + 2 * len(WIDTHS) ** 2)
"""A float baseline, weight_only at each width, dynamic and static at each pair of widths."""

_DIGEST = "0" * 32
_FACTS = ArtifactFacts(parameters=38_282, parameter_bytes=40_000, quantized_parameters=38_000)
_CONTENT = Content(model="m", dataset="d", backend="b", metric="a")


def spec_text(cells: int) -> str:
    """Write a spec whose plan has at least so many cells, all of which can run."""
    models = -(-cells // CELLS_OF_A_MODEL)
    bits = [f"w{w}" for w in WIDTHS] + [f"w{w}a{a}" for w in WIDTHS for a in WIDTHS]

    def entries(letter: str, count: int) -> str:
        return ", ".join(
            f'{{name: "noop:named", label: {letter}{i}, options: {{i: {i}}}}}' for i in range(count)
        )

    return f"""
sweep: noop
models: [{entries("m", models)}]
datasets: [{entries("d", DATASETS)}]
schemes: [weight_only, dynamic, static]
bits: [{", ".join(bits)}]
backends: [{{name: "noop:Backend", label: noop}}]
measure: {{latency: false}}
"""


def named(i: int) -> None:
    """Stand for a model or a dataset, which nobody loads here."""


def nothing(number: int) -> dict[str, float]:
    """Answer for a cell, for peers."""
    del number
    return {"value": 0.5}


class Backend:
    """Says that it can do everything, and is never asked to."""

    name = "noop"
    requires: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    takes = ("object",)

    def support(self, quantization: Quantization) -> Support:
        """Say yes."""
        del quantization
        return Support(supported=True)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Refuse: no worker calls it here."""
        raise NotImplementedError

    def quantize(
        self,
        model: LoadModel,
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Refuse: no worker calls it here."""
        raise NotImplementedError

    def open(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Refuse: no worker calls it here."""
        raise NotImplementedError


class Worker:
    """Gives back at once what a small quality stage gives back.

    Args:
        artifacts: where a real one keeps artifacts.
    """

    def __init__(self, artifacts: str) -> None:
        del artifacts

    def run(self, task: Task) -> Outcome:
        """Answer a content or a quality stage."""
        now = datetime.now(UTC)
        described, env_id = _environment()
        if task.stage == "content":
            return Outcome(task.cell.cell_id, "content", "ok", now, now, content=_CONTENT)
        is_baseline = task.cell.is_baseline
        values: dict[str, Any] = {
            "content_key": cell_key(task.cell, _CONTENT, scheme_digest(task.cell.scheme), None),
            "value": 0.5,
            "examples": 797,
            "batch_size": 64,
            "threads": 1,
            "prepare_ns": 1,
            "open_ns": 1,
            "quantized_share": 0.5,
        }
        if not is_baseline:
            values |= {"baseline_value": 0.5, "delta": 0.0, "sqnr_db": 30.0, "flips_worse": 0}
        artifact = ArtifactRef(_DIGEST, "none", 40_000, _FACTS)
        return Outcome(
            cell_id=task.cell.cell_id,
            stage="quality",
            status="ok",
            started_at=now,
            finished_at=datetime.now(UTC),
            values=values,
            quality=QualityResult(artifact, _DIGEST, _CONTENT if is_baseline else None),
            env_id=env_id,
            environment=described,
        )


@functools.cache
def _environment() -> tuple[dict[str, Any], str]:
    described = environment.describe(())
    return described, environment.env_id(described)
