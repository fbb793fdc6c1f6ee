"""The quality stage: prepare the artifact, run the evaluation split, compare with float."""

import functools
import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import FLOAT, cell_key
from qb_cluster.contracts import (
    Calibration,
    Cell,
    Content,
    LayerSensitivity,
    QualityResult,
    Quantization,
    Task,
)
from qb_cluster.errors import (
    KernelMismatchError,
    NonFiniteError,
    NotAppliedError,
    UnsupportedError,
)
from qb_cluster.evaluation import comparison, inference
from qb_cluster.evaluation.baseline import is_constant
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.judging import judge_baseline, judge_kernels
from qb_cluster.worker.preparation import asked
from qb_cluster.worker.prepare_stage import Made, made_before, make, reference_outputs
from qb_cluster.worker.reference import twin_name
from qb_cluster.worker.site import Site, refuse_other_runtime, runtime_of
from qb_cluster.worker.stage import Loaded, StageResult

MOST_KEPT_BYTES = 16 * 2**20  # of a quantized cell's outputs; a baseline's are needed whole


def run_quality(
    task: Task,
    loaded: Loaded,
    artifacts: ArtifactFolder,
    cache: ArtifactCache,
    site: Site,
    values: dict[str, Any],
) -> StageResult:
    """Prepare a cell's artifact, unless its prepare stage did, and evaluate it.

    Args:
        task: the quality stage of a cell.
        loaded: what the cell names.
        artifacts: where the artifact goes and the baseline's come from.
        cache: artifacts of other sweeps.
        site: where the artifact is run.
        values: filled with columns of the row as they become known, so that a failure later
            on keeps what was found before it.

    Raises:
        CellError: of the kind that says which status the row gets.
    """
    cell = task.cell
    fault = ""
    with site.pinned(task.cores):
        values["threads"] = cell.device.threads
        values["affinity"] = list(task.cores)
        made = made_before(task, loaded, artifacts, cache, values) or make(
            task, loaded, artifacts, cache, values
        )
        values["runtime"] = runtime_of(cell, loaded.backend, site)
        refuse_other_runtime(task, values["runtime"])
        content = _with_runtime(cell, made.preparation.content, values)
        started = time.perf_counter_ns()
        executable = site.open(made.artifact, loaded, cell.device.threads, task.cores)
        values["open_ns"] = time.perf_counter_ns() - started
        measure, dataset = cell.measure, loaded.dataset
        named = plugins.find("metric", measure.metric.target)
        metric = functools.partial(named, **measure.metric.options)
        run = functools.partial(inference.run, executable, dataset.inputs, measure.batch_size)
        if task.baseline is None:
            outputs = _checked(cell, run)
            first = next(inference.batches(dataset.inputs, measure.batch_size))
            again = inference.run(executable, first, measure.batch_size)
            doubt = judge_baseline(cell, outputs, again, made, artifacts, values)
            compared = {"value": comparison.score(metric, outputs, dataset.targets).value}
            doubts = comparison.doubts(named, outputs, dataset.targets)
            values["notes"] = [*(values.get("notes") or ()), *doubts] or None
        else:
            doubt = task.baseline.doubt
            baseline = artifacts.get_outputs(task.baseline.outputs_digest or "")
            outputs, fault = _quantized_outputs(cell, run, baseline, made, artifacts, values)
            compared = comparison.compare(
                metric, baseline, outputs, dataset.targets, measure.confidence
            )
        measured = getattr(executable, "peak_memory_bytes", None)
        values["peak_memory_bytes"] = None if measured is None else measured()
        layers = _layer_sensitivity(cell, loaded)
    digest = kept_first = None
    if cell.is_baseline or outputs.nbytes <= MOST_KEPT_BYTES:
        digest = values["outputs_digest"] = artifacts.put_outputs(outputs)
    else:
        kept_first = artifacts.put_outputs(outputs[:1])
    values |= compared
    values |= {
        "baseline_doubt": doubt,
        "metric": measure.metric.label,
        "examples": len(outputs),
        "dataset_examples": dataset.total,
        "batch_size": measure.batch_size,
    }
    if fault:  # the row keeps what was measured, and proves nothing
        raise KernelMismatchError(fault)
    return StageResult(
        QualityResult(
            made.ref,
            digest,
            content if cell.is_baseline else None,
            first_digest=kept_first,
            doubt=doubt if cell.is_baseline else None,
        ),
        predictions=comparison.predictions(metric, outputs, dataset.targets, dataset.ids),
        layers=layers,
    )


def _with_runtime(cell: Cell, content: Content, values: dict[str, Any]) -> Content:
    """Add the runtime to what a baseline stands for."""
    if values["runtime"] is None or not cell.is_baseline:
        return content
    content = replace(content, runtime=values["runtime"])
    values["content_key"] = cell_key(cell, content, FLOAT, None)
    return content


def _asked(cell: Cell) -> Quantization:
    if cell.scheme is None or cell.bits is None or cell.execution is None:
        raise ValueError(f"cell {cell.cell_id} asks for no quantization")
    scheme = plugins.make("scheme", cell.scheme)
    return Quantization(scheme, cell.bits, cell.execution, cell.calibration)


def _checked(cell: Cell, run: "functools.partial[NDArray[np.float32]]") -> NDArray[np.float32]:
    """Run, and say whose outputs are not finite."""
    try:
        return run()
    except NonFiniteError as error:
        which = "float" if cell.is_baseline else "quantized"
        raise NonFiniteError(f"{which} model '{cell.model.label}': {error}") from None


def _quantized_outputs(
    cell: Cell,
    run: "functools.partial[NDArray[np.float32]]",
    baseline: NDArray[np.float32],
    made: Made,
    artifacts: ArtifactFolder,
    values: dict[str, Any],
) -> tuple[NDArray[np.float32], str]:
    """Run a quantized cell; give its outputs, and what is wrong with its kernels.

    Raises:
        NotAppliedError: they are the float model's, to the bit.
        KernelMismatchError: they are no numbers, and the scheme's simulation is.
        NonFiniteError: they are not finite, and there is no simulation that is.
    """
    reference = reference_outputs(cell, made, artifacts, values)
    if reference is not None:
        values["reference_sqnr_db"] = deviation(baseline, reference).sqnr_db
    try:
        outputs = _checked(cell, run)
    except NonFiniteError as error:
        if reference is None:
            raise
        raise KernelMismatchError(f"{error}, and the scheme's simulation is finite") from None
    if np.array_equal(baseline, outputs) and not is_constant(baseline):
        values["outputs_digest"] = artifacts.put_outputs(outputs)  # the report names whose they are
        raise NotAppliedError(
            f"{cell.bits} was asked for, and all {len(outputs)} outputs are bit-identical to the "
            "float model's"
        )
    if cell.execution == "simulated":
        preparation = made.preparation
        scope = preparation.backend.support(asked(cell, "simulated")).scope
        name = twin_name(cell, preparation.content, preparation.backend_digest, scope)
        artifacts.put_twin(name, outputs)
    fault = ""
    if cell.execution == "native":
        fault = judge_kernels(cell, baseline, outputs, reference, made, artifacts, values)
    return outputs, fault


def _layer_sensitivity(cell: Cell, loaded: Loaded) -> tuple[LayerSensitivity, ...]:
    """Measure each layer, on calibration examples: what is chosen by it is judged by others."""
    if not cell.measure.layers or cell.execution != "simulated":
        return ()
    measure = getattr(loaded.backend, "layer_sensitivity", None)
    if measure is None:
        raise UnsupportedError(f"{cell.backend.label} does not measure layers one by one")
    calibration = cell.calibration or Calibration()
    examples = loaded.dataset.calibration_sample(calibration)
    ranges = None if cell.calibration is None else examples
    return tuple(measure(loaded.model, _asked(cell), ranges, examples))
