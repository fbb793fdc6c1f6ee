"""The latency stage: float and quantized, interleaved, alone on the device."""

import time
from typing import Any

from qb_cluster.catalog.content import cell_key, scheme_digest
from qb_cluster.contracts import Executable, Task
from qb_cluster.evaluation import latency
from qb_cluster.nodes.cores import normal_niceness, pinned
from qb_cluster.nodes.environment import fingerprint
from qb_cluster.nodes.load import BUSY_CORES, Load
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.stage import Loaded, StageResult


def run_latency(
    task: Task, loaded: Loaded, artifacts: ArtifactFolder, values: dict[str, Any]
) -> StageResult:
    """Time a cell against its baseline; a baseline against a second copy of itself.

    The latter shows what the protocol says of two equal models on this machine today: its
    speed-up should be 1, and its interval is the noise.

    Args:
        task: the latency stage of a cell whose quality stage ended ok.
        loaded: what the cell names.
        artifacts: where both artifacts are.
        values: filled with columns of the row.
    """
    settings = task.cell.measure.latency
    if settings is None or task.quality is None or task.baseline is None:
        raise ValueError(f"cell {task.cell.cell_id} has no latency stage")
    threads = task.cell.device.threads
    example = {name: array.copy() for name, array in loaded.dataset.example().items()}
    with pinned(task.cores) as is_pinned, normal_niceness() as niceness:
        baseline, quantized = (
            loaded.backend.open(artifacts.get(quality.artifact), loaded.model, threads)
            for quality in (task.baseline, task.quality)
        )
        values["first_inference_ns"] = _first_inference(quantized, example)
        before = Load.now()
        result = latency.measure(lambda: baseline(example), lambda: quantized(example), settings)
        foreign = Load.now().foreign_cores(before)
    verdict = latency.speedup(result, task.cell.measure.confidence)
    values["latency_median_ns"], values["latency_iqr_ns"] = latency.spread(
        result.samples("quantized")
    )
    values["baseline_latency_median_ns"], values["baseline_latency_iqr_ns"] = latency.spread(
        result.samples("baseline")
    )
    flags = {
        "unpinned": not is_pinned,
        "low_priority": niceness > 0,
        "foreign_load": foreign > BUSY_CORES,
        "noisy": values["latency_iqr_ns"] > latency.NOISY * values["latency_median_ns"],
        "capped": result.capped,
    }
    values |= {
        "speedup": verdict.ratio,
        "speedup_low": verdict.low,
        "speedup_high": verdict.high,
        "speedup_verdict": verdict.verdict,
        "latency_runs": len(result.samples("quantized")),
        "latency_flags": ",".join(name for name, raised in flags.items() if raised),
        "niceness": niceness,
        "foreign_cores": foreign,
    }
    if task.baseline.content is not None:
        scheme = scheme_digest(task.cell.scheme)
        values["content_key"] = cell_key(task.cell, task.baseline.content, scheme, fingerprint())
    return StageResult(samples=result.blocks)


def _first_inference(executable: Executable, example: Any) -> int:
    before = time.perf_counter_ns()
    executable(example)
    return time.perf_counter_ns() - before
