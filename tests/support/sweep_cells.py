"""Cells and outcomes for tests of the scheduler: real values, nothing behind them."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from qb_cluster.contracts import (
    ArtifactFacts,
    ArtifactRef,
    Bits,
    Cell,
    Content,
    Device,
    Latency,
    Measure,
    Outcome,
    QualityResult,
    Ref,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


CONTENT = Content("model", "dataset", "backend", "metric")


def cell_of(
    group,
    number,
    *,
    is_timed=True,
    threads=1,
    supported=True,
    timeout_s=10.0,
    timeout_retries=0,
    labels=(),
    ssh=None,
    gpus=0,
    prepared_on=(),
):
    """The `number`-th cell of a group; number 0 is its baseline."""

    def name(n):
        return hashlib.blake2b(f"{group}/{n}".encode(), digest_size=8).hexdigest()

    is_baseline = number == 0
    return Cell(
        cell_id=name(number),
        sweep="s",
        model=Ref(f"model-{group}", f"m:model_{group}"),
        dataset=Ref("data", "m:data"),
        backend=Ref("backend", "m:backend"),
        device=Device("cpu", threads, labels, (), ssh, gpus, prepared_on),
        scheme=None if is_baseline else Ref(f"scheme-{number}", "weight_only"),
        bits=None if is_baseline else Bits(8),
        execution="native" if supported else None,
        reason="" if supported else "no kernel",
        calibration=None,
        measure=Measure(latency=Latency() if is_timed else None),
        timeout_s=timeout_s,
        timeout_retries=timeout_retries,
        baseline_cell_id=name(0),
    )


def key_of(cell, content, fingerprint):
    """A content key that a test can read."""
    return f"{cell.cell_id}/{content.model}/{content.runtime}/{fingerprint}"


def outcome_of(task, status="ok", *, content=CONTENT, took_s=1.0, at=NOW):
    """How a stage of the task ended; keys are those of `key_of` without hardware."""
    cell, quality, found, values = task.cell, None, None, {}
    if task.stage == "content" and status == "ok":
        found = replace(content, runtime=None)
    if task.stage == "runtime":
        values = {"runtime": content.runtime}
    if task.stage in {"prepare", "quality"} and status == "ok":
        facts = ArtifactFacts(10, 10, 10)
        outputs = "outputs" if cell.is_baseline and task.stage == "quality" else None
        known = content if cell.is_baseline else None
        quality = QualityResult(ArtifactRef("digest", "bin", 10, facts), outputs, known)
        values = {"content_key": key_of(cell, content, None)}
    return Outcome(
        cell_id=task.cell.cell_id,
        stage=task.stage,
        status=status,
        started_at=at,
        finished_at=at + timedelta(seconds=took_s),
        values=values,
        error=None if status == "ok" else f"it {status}",
        quality=quality,
        content=found,
    )
