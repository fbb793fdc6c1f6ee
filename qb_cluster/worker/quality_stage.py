"""The quality stage: prepare the artifact, run the evaluation split, compare with float."""

import functools
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.contracts import (
    Artifact,
    ArtifactRef,
    Cell,
    Predictions,
    QualityResult,
    Quantization,
    Task,
)
from qb_cluster.errors import NonFiniteError, NotAppliedError
from qb_cluster.evaluation import comparison, inference
from qb_cluster.nodes.cores import pinned
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.stage import Loaded, StageResult


def run_quality(
    task: Task, loaded: Loaded, artifacts: ArtifactFolder, values: dict[str, Any]
) -> StageResult:
    """Prepare and evaluate a cell.

    Args:
        task: the quality stage of a cell.
        loaded: what the cell names.
        artifacts: where the artifact goes and the baseline's come from.
        values: filled with columns of the row as they become known, so that a failure later
            on keeps what was found before it.

    Raises:
        CellError: of the kind that says which status the row gets.
    """
    cell = task.cell
    with pinned(task.cores):
        values["threads"] = cell.device.threads
        values["affinity"] = ",".join(str(core) for core in task.cores)
        started = time.perf_counter_ns()
        artifact = _prepare(task, loaded, artifacts)
        ref = artifacts.put(artifact)
        values["prepare_ns"] = time.perf_counter_ns() - started
        _state_facts(cell, ref, task.baseline, values)
        started = time.perf_counter_ns()
        executable = loaded.backend.open(artifact, loaded.model, cell.device.threads)
        values["open_ns"] = time.perf_counter_ns() - started
        dataset = loaded.dataset
        try:
            outputs = inference.run(executable, dataset.inputs, cell.measure.batch_size)
        except NonFiniteError as error:
            which = "float" if cell.is_baseline else "quantized"
            raise NonFiniteError(f"{which} model '{cell.model.label}': {error}") from None
    return StageResult(
        QualityResult(ref, artifacts.put_outputs(outputs) if cell.is_baseline else None),
        _compare(task, loaded, artifacts, outputs, values),
    )


def _prepare(task: Task, loaded: Loaded, artifacts: ArtifactFolder) -> Artifact:
    cell, dataset = task.cell, loaded.dataset
    if task.baseline is None or cell.scheme is None or cell.bits is None or cell.execution is None:
        example = {name: array[:1] for name, array in dataset.inputs.items()}
        return loaded.backend.convert(loaded.model, example)
    quantization = Quantization(plugins.make("scheme", cell.scheme), cell.bits, cell.execution)
    calibration = None if cell.calibration is None else dataset.calibration_sample(cell.calibration)
    baseline = artifacts.get(task.baseline.artifact)
    return loaded.backend.quantize(loaded.model, baseline, quantization, calibration)


def _state_facts(
    cell: Cell, ref: ArtifactRef, baseline: QualityResult | None, values: dict[str, Any]
) -> None:
    """Put what the artifact really holds into the row, and refuse one that is still float."""
    facts = ref.facts
    simulated = cell.execution == "simulated"  # holds floats on purpose: its size says nothing
    values["artifact_bytes"] = None if simulated else ref.size_bytes
    values["bits_per_weight"] = facts.bits_per_weight
    values["quantized_share"] = facts.quantized_parameters / max(1, facts.parameters)
    values["notes"] = "; ".join(facts.notes) or None
    if baseline is None:
        return
    values["baseline_artifact_bytes"] = baseline.artifact.size_bytes
    if facts.quantized_parameters == 0:
        bits = facts.bits_per_weight
        found = "float weights" if bits is None else f"{bits:.1f} bits per weight, all float"
        raise NotAppliedError(f"{cell.bits} was asked for, and the artifact holds {found}")


def _compare(
    task: Task,
    loaded: Loaded,
    artifacts: ArtifactFolder,
    outputs: NDArray[np.float32],
    values: dict[str, Any],
) -> Predictions:
    """Fill in the metric and, for a quantized cell, the comparison with its baseline."""
    measure, dataset = task.cell.measure, loaded.dataset
    metric = functools.partial(
        plugins.find("metric", measure.metric.target), **measure.metric.options
    )
    if task.baseline is None or task.baseline.outputs_digest is None:
        compared = {"value": comparison.score(metric, outputs, dataset.targets).value}
    else:
        baseline = artifacts.get_outputs(task.baseline.outputs_digest)
        if np.array_equal(baseline, outputs):
            raise NotAppliedError(
                f"{task.cell.bits} was asked for, and all {len(outputs)} outputs are "
                "bit-identical to the float model's"
            )
        compared = comparison.compare(
            metric, baseline, outputs, dataset.targets, measure.confidence
        )
    values |= compared
    values |= {
        "metric": measure.metric.label,
        "examples": len(outputs),
        "batch_size": measure.batch_size,
    }
    return comparison.predictions(metric, outputs, dataset.targets, dataset.ids)
