"""The latency stage: float and quantized, interleaved, alone on the device."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.boards.board import Timing
from qb_cluster.catalog.content import cell_key, scheme_digest
from qb_cluster.contracts import QualityResult, Task
from qb_cluster.evaluation import latency
from qb_cluster.evaluation.timed import check_timed
from qb_cluster.nodes.load import BUSY_CORES
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.site import Site, refuse_other_runtime, runtime_of
from qb_cluster.worker.stage import Loaded, StageResult

DEVICE_TIMED: Final = "timed by CUDA events, transfers excluded"


def run_latency(
    task: Task, loaded: Loaded, artifacts: ArtifactFolder, site: Site, values: dict[str, Any]
) -> StageResult:
    """Time a cell against its baseline; a baseline against a second copy of itself.

    The latter shows what the protocol says of two equal models on this machine today: its
    speed-up should be 1, and its interval is the noise.

    Args:
        task: the latency stage of a cell whose quality stage ended ok.
        loaded: what the cell names.
        artifacts: where both artifacts are.
        site: where they are timed.
        values: filled with columns of the row.

    Raises:
        CellError: of the kind that says which status the row gets.
    """
    settings = task.cell.measure.latency
    if settings is None or task.quality is None or task.baseline is None:
        raise ValueError(f"cell {task.cell.cell_id} has no latency stage")
    refuse_other_runtime(task, runtime_of(task.cell, loaded.backend, site))
    threads = task.cell.device.threads
    example = {name: array.copy() for name, array in loaded.dataset.example().items()}
    baseline, quantized = (
        artifacts.get(quality.artifact) for quality in (task.baseline, task.quality)
    )
    timing = site.time(baseline, quantized, example, settings, loaded, threads, task.cores)
    _check_timed(task, artifacts, timing)
    result = timing.result
    values["first_inference_ns"] = timing.first_inference_ns
    if timing.is_device_timed:
        values["notes"] = [DEVICE_TIMED]
    verdict = latency.speedup(result, task.cell.measure.confidence)
    arms: tuple[tuple[str, latency.Arm], ...] = (("", "quantized"), ("baseline_", "baseline"))
    for prefix, arm in arms:
        median_ns, iqr_ns = latency.typical(result, arm)
        values[f"{prefix}latency_median_ns"] = median_ns
        values[f"{prefix}latency_iqr_ns"] = iqr_ns
    flags = {
        "unpinned": not timing.is_pinned,
        "low_priority": timing.niceness > 0,
        "foreign_load": (timing.foreign_cores or 0.0) > BUSY_CORES,
        "noisy": values["latency_iqr_ns"] > latency.NOISY * values["latency_median_ns"],
        "capped": result.capped,
    }
    values |= {
        "speedup": verdict.ratio,
        "speedup_low": verdict.low,
        "speedup_high": verdict.high,
        "speedup_verdict": verdict.verdict,
        "latency_runs": len(result.samples("quantized")),
        "latency_flags": [*(name for name, raised in flags.items() if raised), *timing.flags],
        "niceness": timing.niceness,
        "foreign_cores": timing.foreign_cores,
    }
    if task.baseline.content is not None:
        scheme = scheme_digest(task.cell.scheme)
        values["content_key"] = cell_key(
            task.cell, task.baseline.content, scheme, site.fingerprint(loaded.backend)
        )
    return StageResult(samples=result.blocks)


def _check_timed(task: Task, artifacts: ArtifactFolder, timing: Timing) -> None:
    """See that both arms give for the first example what quality was judged by.

    Raises:
        KernelMismatchError: one does not.
    """
    floats = _first_outputs(task.baseline, artifacts)
    if floats is None:  # kept by a QuantBench that noted none
        return
    check_timed("the float model", floats, timing.outputs[0], None)
    judged = _first_outputs(task.quality, artifacts)
    if judged is not None and not task.cell.is_baseline:
        check_timed("the quantized model", judged, timing.outputs[1], floats)


def _first_outputs(
    quality: QualityResult | None, artifacts: ArtifactFolder
) -> NDArray[np.float32] | None:
    digest = quality and (quality.outputs_digest or quality.first_digest)
    return artifacts.get_outputs(digest)[:1] if digest else None
