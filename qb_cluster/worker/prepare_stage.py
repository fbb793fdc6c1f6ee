"""The prepare stage: the artifact of a cell, made where its converters are.

What runs on the machine that prepared it has no such stage: its quality stage does the same.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog.content import cell_key, scheme_digest
from qb_cluster.contracts import Artifact, ArtifactRef, Cell, Content, QualityResult, Task
from qb_cluster.contracts.coverage import covered_share
from qb_cluster.errors import CellError, KernelMismatchError, NotAppliedError
from qb_cluster.nodes.cores import pinned
from qb_cluster.nodes.environment import fingerprint
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.facts_check import check_facts
from qb_cluster.worker.framework import in_framework
from qb_cluster.worker.own_arithmetic import by_reference
from qb_cluster.worker.preparation import Preparation
from qb_cluster.worker.reference import Twin, simulated_twin
from qb_cluster.worker.stage import Loaded, StageResult


@dataclass(frozen=True, slots=True)
class Made:
    """A cell's artifact, and what made it.

    Attributes:
        is_from_elsewhere: whether a prepare stage made it, which found its twin and its own
            outputs too.
        twin: the name of what it is held against; ``None`` where there is none to be had.
        own: the name of its outputs by reference arithmetic; ``None`` likewise.
    """

    artifact: Artifact
    ref: ArtifactRef
    preparation: Preparation
    is_from_elsewhere: bool = False
    twin: str | None = None
    own: str | None = None


def run_prepare(
    task: Task,
    loaded: Loaded,
    artifacts: ArtifactFolder,
    cache: ArtifactCache,
    values: dict[str, Any],
) -> StageResult:
    """Make a cell's artifact, and the outputs that its kernels will be held against.

    Args:
        task: the prepare stage of a cell.
        loaded: what the cell names.
        artifacts: where all of it goes, and the baseline's artifact comes from.
        cache: artifacts of other sweeps.
        values: filled with columns of the row as they become known.

    Raises:
        CellError: of the kind that says which status the row gets.
    """
    with pinned(task.cores):
        made = make(task, loaded, artifacts, cache, values)
        twin = find_twin(task.cell, made.preparation, artifacts, values)
        own = find_own(task.cell, made, artifacts, values)
    content = made.preparation.content if task.cell.is_baseline else None
    name = None if twin is None else twin.name
    return StageResult(QualityResult(made.ref, None, content, name, own))


def make(
    task: Task,
    loaded: Loaded,
    artifacts: ArtifactFolder,
    cache: ArtifactCache,
    values: dict[str, Any],
) -> Made:
    """Convert or quantize, and say in ``values`` what came of it.

    Raises:
        NotAppliedError: what should be quantized is still float.
        CellError: it cannot be made.
    """
    cell = task.cell
    known = loaded.content() if task.baseline is None else task.baseline.content
    if known is not None:
        values["content_key"] = cell_key(cell, known, scheme_digest(cell.scheme), None)
    content = known or loaded.content()
    preparation = _preparation(task, loaded, content, cache)
    baseline = None
    if task.baseline is None:
        prepared = preparation.convert()
    elif cell.execution is None:
        raise ValueError(f"cell {cell.cell_id} asks for no quantization")
    else:
        loaded.reused.add("baseline")
        baseline = artifacts.get(task.baseline.artifact)
        prepared = preparation.quantize(cell, baseline, cell.execution)
    if prepared.is_reused:
        loaded.reused.add("artifact")
    is_simulated = cell.execution == "simulated"
    check_facts(loaded.backend, prepared.artifact, baseline, simulated=is_simulated)
    values["prepare_ns"] = prepared.prepare_ns
    ref = artifacts.put(prepared.artifact)
    _state_facts(cell, ref, task.baseline, values)
    return Made(prepared.artifact, ref, preparation)


def made_before(
    task: Task,
    loaded: Loaded,
    artifacts: ArtifactFolder,
    cache: ArtifactCache,
    values: dict[str, Any],
) -> Made | None:
    """Take up what a prepare stage left, its columns too; ``None`` without one.

    It was the cell's own, or that of a cell which differs in its device alone.

    Raises:
        CellError: the artifact is gone or damaged.
    """
    before = task.prepared
    if before is None or before.quality is None:
        return None
    known = task.baseline.content if task.baseline else before.quality.content
    content = known or loaded.content()
    values.update(before.values)
    if known is not None:  # of this device, where its runtime counts
        values["content_key"] = cell_key(task.cell, known, scheme_digest(task.cell.scheme), None)
    loaded.reused.update(before.values.get("reused") or ())
    ref = before.quality.artifact
    preparation = _preparation(task, loaded, content, cache)
    found = {"twin": before.quality.twin, "own": before.quality.own}
    return Made(artifacts.get(ref), ref, preparation, is_from_elsewhere=True, **found)


def _preparation(task: Task, loaded: Loaded, content: Content, cache: ArtifactCache) -> Preparation:
    # One backend makes other artifacts on a GPU, on each kind of GPU even, and other outputs of
    # one simulation.
    at_gpu = f" {fingerprint(1)}" if task.cell.device.gpus else ""
    digest = content.backend + at_gpu
    return Preparation(loaded.backend, digest, content, loaded, cache)


def _state_facts(
    cell: Cell, ref: ArtifactRef, baseline: QualityResult | None, values: dict[str, Any]
) -> None:
    """Put what the artifact really holds into the row, and refuse one that is still float."""
    facts = ref.facts
    simulated = cell.execution == "simulated"  # holds floats on purpose: its size says nothing
    values["artifact_bytes"] = None if simulated else ref.size_bytes
    values["bits_per_weight"] = facts.bits_per_weight
    values["quantized_share"] = facts.quantized_parameters / max(1, facts.parameters)
    values["integer_mac_share"] = facts.integer_mac_share
    values["integer_layer_mac_share"] = facts.integer_layer_mac_share
    values["fallback_ops"] = list(facts.fallback_ops)
    values["weight_bytes"] = None if simulated else facts.parameter_bytes
    values["activation_scope"] = facts.scope
    if facts.coverage is not None:
        values["coverage"] = json.dumps(facts.coverage)
        values["covered_share"] = covered_share(facts.coverage)
    values["effective_bits"] = facts.effective_bits and str(facts.effective_bits)
    values["notes"] = list(facts.notes) or None
    if baseline is None:
        return
    values["baseline_artifact_bytes"] = baseline.artifact.size_bytes
    if facts.quantized_parameters == 0:
        bits = facts.bits_per_weight
        found = "float weights" if bits is None else f"{bits:.1f} bits per weight, all float"
        raise NotAppliedError(f"{cell.bits} was asked for, and the artifact holds {found}")


def find_own(
    cell: Cell, made: Made, artifacts: ArtifactFolder, values: dict[str, Any]
) -> str | None:
    """Name the outputs of a native artifact by reference arithmetic; ``None`` where there are none.

    Raises:
        KernelMismatchError: they are not finite.
    """
    if cell.is_baseline or cell.execution != "native":
        return None
    if made.is_from_elsewhere:
        return made.own
    arguments = made.artifact, made.ref.digest, made.preparation, artifacts, cell.device.threads
    try:
        return by_reference(*arguments)
    except KernelMismatchError:
        raise
    except CellError as error:
        add_note(values, f"no reference arithmetic for this artifact: {error}")
        return None


def kept_outputs(name: str, artifacts: ArtifactFolder) -> NDArray[np.float32]:
    """Read outputs that something is held against.

    Raises:
        CellError: they are gone.
    """
    kept = artifacts.get_twin(name)
    if kept is None:
        raise CellError(
            f"the outputs {name} that it is held against are gone from the run folder, or "
            "cannot be reached from here; run with --rerun failed"
        )
    return kept


def reference_outputs(
    cell: Cell, made: Made, artifacts: ArtifactFolder, values: dict[str, Any]
) -> NDArray[np.float32] | None:
    """Give what ``find_twin`` finds: outputs, those of a baseline for the first examples alone.

    Where a runtime is alone nothing else runs: what the prepare stage found is taken.

    Raises:
        CellError: what it found is gone.
    """
    if not made.is_from_elsewhere:
        twin = find_twin(cell, made.preparation, artifacts, values)
        return None if twin is None else twin.outputs
    if made.twin is None:
        return None
    return kept_outputs(made.twin, artifacts)


def find_twin(
    cell: Cell, preparation: Preparation, artifacts: ArtifactFolder, values: dict[str, Any]
) -> Twin | None:
    """Give what a cell's outputs are held against; ``None`` where there is nothing.

    That is the scheme of a native cell, simulated, or the model of a baseline in its own framework;
    a note says where that cannot be.
    """
    if cell.is_baseline:
        try:
            return in_framework(preparation, artifacts, cell.device.threads)
        except CellError as error:
            add_note(values, f"the float model is held against nothing: {error}")
            return None
    if cell.execution != "native":
        return None
    note = "no backend simulates this scheme, so the kernels are held against nothing"
    if cell.simulator is not None:
        values["simulator"] = cell.simulator.label
        try:
            twin = simulated_twin(cell, cell.simulator, preparation, artifacts)
        except CellError as error:
            note = f"kernels are held against nothing: {error}"
        else:
            values["simulator"] = twin.simulator
            add_note(values, twin.note)
            return twin
    add_note(values, note)
    return None


def add_note(values: dict[str, Any], note: str) -> None:
    """Add a note to those that a row has; nothing where it is empty."""
    values["notes"] = [*(values.get("notes") or ()), *filter(None, [note])] or None
