"""The judges of a quality stage: is the float artifact the model, do the kernels compute theirs?"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Cell
from qb_cluster.evaluation import baseline as judge
from qb_cluster.evaluation import kernel
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.own_arithmetic import departure
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.prepare_stage import (
    Made,
    add_note,
    find_own,
    kept_outputs,
    reference_outputs,
)

NOTED_GAP_DB: Final = 3.0
"""What a recipe loses beyond its scheme is noted from twice the noise on."""


def judge_baseline(
    cell: Cell,
    outputs: NDArray[np.float32],
    again: NDArray[np.float32],
    made: Made,
    artifacts: ArtifactFolder,
    values: dict[str, Any],
) -> str | None:
    """See that a float artifact is the user's model; say why nothing can be told from it, if so.

    ``outputs`` are for all examples, ``again`` for those of the first batch, from another run.

    Raises:
        BaselineMismatchError: its outputs are far from the model's in its own framework.
    """
    reference = reference_outputs(cell, made, artifacts, values)
    if reference is not None:
        precision = getattr(made.preparation.backend, "float_precision", judge.FULL)
        first = outputs[: len(reference)]
        values["baseline_sqnr_db"] = judge.check(reference, first, precision)
        if precision != judge.FULL:
            add_note(values, f"{cell.backend.label} computes float models in {precision}")
    if judge.is_constant(outputs):
        return judge.CONSTANT
    return judge.doubt(outputs[: len(again)], again)


def judge_kernels(
    cell: Cell,
    floats: NDArray[np.float32],
    outputs: NDArray[np.float32],
    simulated: NDArray[np.float32] | None,
    made: Made,
    artifacts: ArtifactFolder,
    values: dict[str, Any],
) -> str:
    """Say what is wrong with a cell's kernels; nothing where nothing is.

    They are held against their own artifact by reference arithmetic, where the backend has some,
    and what the artifact loses beyond the scheme is stated; else against the scheme, ``simulated``.
    ``floats`` are the float model's outputs.

    Raises:
        KernelMismatchError: the artifact itself gives no numbers.
    """
    values["sqnr_db"] = deviation(floats, outputs).sqnr_db
    if simulated is not None:
        values["reference_agreement"] = deviation(simulated, outputs).top1_agreement
    name = find_own(cell, made, artifacts, values)
    if name is None:
        return "" if simulated is None else _against_scheme(floats, outputs, simulated, values)
    own = kept_outputs(name, artifacts)
    count = len(own)
    slack_db = getattr(made.preparation.backend, "reference_slack_db", 0.0)
    found = departure(floats[:count], own, outputs[:count], slack_db)
    values["kernel_worst_db"] = found.worst_db
    if simulated is not None:
        own_db, scheme_db = (
            deviation(floats[:count], one[:count]).sqnr_db for one in (own, simulated)
        )
        gap = values["recipe_gap_db"] = scheme_db - own_db if own_db != scheme_db else 0.0
        if gap > NOTED_GAP_DB:
            add_note(
                values,
                f"this runtime's recipe loses {gap:.1f} dB beyond the scheme ({own_db:.1f} dB, and "
                f"{scheme_db:.1f} simulated)",
            )
    if not found.fault:
        return ""
    return (
        "the kernels do not compute their artifact: against the same artifact by reference "
        f"arithmetic, on {count} examples, {found.fault}"
    )


def _against_scheme(
    floats: NDArray[np.float32],
    outputs: NDArray[np.float32],
    simulated: NDArray[np.float32],
    values: dict[str, Any],
) -> str:
    compared = kernel.faithfulness(floats, outputs, simulated)
    if not compared.is_mismatch:
        return ""
    agreement = (
        ""
        if compared.native_agreement is None or compared.simulated_agreement is None
        else f", top-1 agreement with float {compared.native_agreement:.0%} against "
        f"{compared.simulated_agreement:.0%}"
    )
    return (
        f"the kernels do not compute the scheme: median SQNR {compared.native_db:.1f} dB "
        f"where its simulation on {values['simulator']} gives {compared.simulated_db:.1f} dB"
        f"{agreement}"
    )
