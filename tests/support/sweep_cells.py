"""Cells and outcomes for tests of the scheduler: real values, nothing behind them."""

import hashlib
from datetime import UTC, datetime

from qb_cluster.contracts import (
    ArtifactFacts,
    ArtifactRef,
    Bits,
    Cell,
    Device,
    Latency,
    Measure,
    Outcome,
    QualityResult,
    Ref,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cell_of(group, number, *, is_timed=True, threads=1, supported=True, timeout_s=10.0):
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
        device=Device("cpu", threads),
        scheme=None if is_baseline else Ref("weight_only", "weight_only"),
        bits=None if is_baseline else Bits(8),
        execution="native" if supported else None,
        reason="" if supported else "no kernel",
        calibration=None,
        measure=Measure(latency=Latency() if is_timed else None),
        timeout_s=timeout_s,
        baseline_cell_id=name(0),
    )


def outcome_of(task, status="ok"):
    quality = None
    if task.stage == "quality" and status == "ok":
        facts = ArtifactFacts(10, 10, 10)
        outputs = "outputs" if task.cell.is_baseline else None
        quality = QualityResult(ArtifactRef("digest", "bin", 10, facts), outputs)
    return Outcome(
        cell_id=task.cell.cell_id,
        stage=task.stage,
        status=status,
        started_at=NOW,
        finished_at=NOW,
        error=None if status == "ok" else f"it {status}",
        quality=quality,
    )
