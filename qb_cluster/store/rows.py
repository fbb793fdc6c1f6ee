"""One row of the table ``results``: a cell, and what its stages found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa

from qb_cluster.contracts import Cell, Outcome, Status
from qb_cluster.store.tables import RESULTS

_FLOAT_BITS: Final = 32
_TYPES: Final = {column.name: column.type for column in RESULTS}


@dataclass(frozen=True, slots=True)
class FinishedCell:
    """A cell that is done, for better or worse.

    Attributes:
        row: its row, from ``result_row`` or ``not_run_row``.
        outcomes: the outcomes it was built from, for their predictions, samples and
            environments; none for a cell that never ran.
    """

    row: Mapping[str, Any]
    outcomes: tuple[Outcome, ...] = ()


def result_row(
    cell: Cell, outcomes: Sequence[Outcome], attempt: int, spec_digest: str
) -> dict[str, Any]:
    """Combine a cell with the outcomes of its stages.

    A stage that failed decides the status; what earlier stages found stays in the row.

    Args:
        cell: the cell.
        outcomes: of its stages, in the order they ran, at least one.
        attempt: how often the last stage was tried, from 1.
        spec_digest: digest of the spec that asked for it.

    Returns:
        Every column of the table ``results``.

    Raises:
        ValueError: a stage's ``values`` hold what is no column of the table, a column that is
            not a stage's to fill, or a value that does not fit its column.
    """
    fate = next((outcome for outcome in reversed(outcomes) if outcome.status != "ok"), outcomes[-1])
    error = fate.error
    if fate.status != "ok" and fate.stage == "latency":
        error = f"latency stage: {error}"
    decided = _identity(cell, spec_digest) | {
        "status": fate.status,
        "error": error,
        "traceback": fate.traceback,
        "attempt": attempt,
        "started_at": outcomes[0].started_at,
        "finished_at": outcomes[-1].finished_at,
        "env_id": next((o.env_id for o in reversed(outcomes) if o.env_id), None),
    }
    found: dict[str, Any] = {}
    for outcome in outcomes:
        for name, value in outcome.values.items():
            if name not in _TYPES or name in decided:
                raise ValueError(f"cell {cell.cell_id}: a stage has no column '{name}' to fill")
            plain = _plain(cell, name, value)
            if name == "notes" or plain is not None:
                found[name] = plain
    notes = [cell.reason, *(outcome.values.get("notes") for outcome in outcomes)]
    return _blank() | _conditions(cell) | found | decided | {"notes": _joined(notes)}


def not_run_row(
    cell: Cell,
    status: Status,
    error: str,
    spec_digest: str,
    *,
    attempt: int = 0,
    finished_at: datetime | None = None,
) -> dict[str, Any]:
    """Make the row of a cell without outcomes: unsupported, quarantined, or without a baseline.

    Args:
        cell: the cell.
        status: anything but ok.
        error: why.
        spec_digest: digest of the spec that asked for it.
        attempt: how often its last stage was tried.
        finished_at: when it was given up.

    Returns:
        Every column of the table ``results``.
    """
    return (
        _blank()
        | _conditions(cell)
        | _identity(cell, spec_digest)
        | {
            "status": status,
            "error": error,
            "notes": _joined([cell.reason]) if cell.reason != error else None,
            "attempt": attempt,
            "finished_at": finished_at,
        }
    )


def _blank() -> dict[str, Any]:
    return dict.fromkeys(_TYPES)


def _identity(cell: Cell, spec_digest: str) -> dict[str, Any]:
    """Give the columns that say which cell it is; no stage may change them."""
    activation_bits = None if cell.bits is None else cell.bits.activation
    return {
        "cell_id": cell.cell_id,
        "sweep": cell.sweep,
        "model": cell.model.label,
        "dataset": cell.dataset.label,
        "backend": cell.backend.label,
        "device": cell.device.name,
        "scheme": "float" if cell.scheme is None else cell.scheme.label,
        "bits": "f32" if cell.bits is None else str(cell.bits),
        "weight_bits": _FLOAT_BITS if cell.bits is None else cell.bits.weight,
        "activation_bits": _FLOAT_BITS if activation_bits is None else activation_bits,
        "execution": cell.execution,
        "baseline_cell_id": cell.baseline_cell_id,
        "confidence": cell.measure.confidence,
        "spec_digest": spec_digest,
    }


def _conditions(cell: Cell) -> dict[str, Any]:
    """Give what the spec asked for; a stage that knows better says so."""
    calibration = cell.calibration
    return {
        "metric": cell.measure.metric.label,
        "batch_size": cell.measure.batch_size,
        "threads": cell.device.threads,
        "calibration_samples": None if calibration is None else calibration.samples,
        "calibration_seed": None if calibration is None else calibration.seed,
        "calibration_observer": None if calibration is None else calibration.observer,
        "calibration_percentile": (
            calibration.percentile
            if calibration is not None and calibration.observer == "percentile"
            else None
        ),
        "simulator": None if cell.simulator is None else cell.simulator.label,
    }


def _plain(cell: Cell, name: str, value: Any) -> Any:
    """Turn a value into the plain Python value of its column's type; NaN is null."""
    if value is None:
        return None
    try:
        plain = pa.scalar(value, type=_TYPES[name]).as_py()
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"cell {cell.cell_id}: column '{name}': {error}") from error
    if isinstance(plain, int) and plain != value:  # Arrow cuts the fraction off without a word
        raise ValueError(f"cell {cell.cell_id}: column '{name}' takes whole numbers, not {value}")
    return None if isinstance(plain, float) and math.isnan(plain) else plain


def _joined(notes: Sequence[str | None]) -> str | None:
    """Join what there is, each once, in order."""
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None
