"""Rows of the table ``results``: cells, and what their stages found.

Built column by column: a sweep of no-op cells spends its time here, and a value costs a tenth of
what it does row by row.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from qb_cluster.contracts import Calibration, Cell, FinishedCell
from qb_cluster.store.tables import RESULTS, SCHEMAS

_FLOAT_BITS: Final = 32


def _last(ended: FinishedCell, name: str) -> Any:
    return getattr(ended.outcomes[-1], name) if ended.outcomes else None


def _error(ended: FinishedCell) -> str | None:
    last = ended.outcomes[-1] if ended.outcomes else None
    if last is not None and last.stage == "latency" and last.status != "ok":
        return f"latency stage: {ended.error}"
    return ended.error


def _environment(ended: FinishedCell, name: str) -> Any:
    """Look up where its last stage ran; a stage read back from the journal does not say."""
    where = next((one.environment for one in reversed(ended.outcomes) if one.environment), {})
    return where.get(name)


_OF_CELL: Final[Mapping[str, Callable[[Cell], Any]]] = {
    "cell_id": lambda cell: cell.cell_id,
    "sweep": lambda cell: cell.sweep,
    "model": lambda cell: cell.model.label,
    "dataset": lambda cell: cell.dataset.label,
    "backend": lambda cell: cell.backend.label,
    "device": lambda cell: cell.device.name,
    "scheme": lambda cell: "float" if cell.scheme is None else cell.scheme.label,
    "bits": lambda cell: "f32" if cell.bits is None else str(cell.bits),
    "weight_bits": lambda cell: _FLOAT_BITS if cell.bits is None else cell.bits.weight,
    "activation_bits": lambda cell: (cell.bits and cell.bits.activation) or _FLOAT_BITS,
    "execution": lambda cell: cell.execution,
    "baseline_cell_id": lambda cell: cell.baseline_cell_id,
    "confidence": lambda cell: cell.measure.confidence,
}
"""Which cell it is."""
_OF_FATE: Final[Mapping[str, Callable[[FinishedCell], Any]]] = {
    "status": lambda ended: ended.status,
    "error": _error,
    "traceback": lambda ended: _last(ended, "traceback"),
    "story": lambda ended: ended.story,
    "attempt": lambda ended: ended.attempt,
    "started_at": lambda ended: ended.outcomes[0].started_at if ended.outcomes else None,
    "finished_at": lambda ended: ended.finished_at or _last(ended, "finished_at"),
    "env_id": lambda ended: next((o.env_id for o in reversed(ended.outcomes) if o.env_id), None),
    "host": lambda ended: _environment(ended, "host"),
    "arch": lambda ended: _environment(ended, "arch"),
    "board": lambda ended: _environment(ended, "board"),
}
"""How it ended, and where."""
_OF_SPEC: Final[Mapping[str, Callable[[Cell], Any]]] = {
    "metric": lambda cell: cell.measure.metric.label,
    "batch_size": lambda cell: cell.measure.batch_size,
    "threads": lambda cell: cell.device.threads,
    "simulator": lambda cell: None if cell.simulator is None else cell.simulator.label,
    "calibration_samples": lambda cell: cell.calibration and cell.calibration.samples,
    "calibration_seed": lambda cell: cell.calibration and cell.calibration.seed,
    "calibration_observer": lambda cell: cell.calibration and cell.calibration.observer,
    "calibration_percentile": lambda cell: cell.calibration and _percentile(cell.calibration),
}
"""What the spec asked for; a stage that knows better says so."""
_DECIDED: Final = {*_OF_CELL, *_OF_FATE, "spec_digest"}
_FREE: Final = frozenset(column.name for column in RESULTS if column.name not in _DECIDED)
_WHOLE: Final = frozenset(
    column.name for column in RESULTS if pa.types.is_integer(column.type) and column.name in _FREE
)


def results_table(finished: Sequence[FinishedCell], spec_digest: str) -> pa.Table:
    """Make rows of the table ``results``, one a cell.

    A stage that failed decides the status; what earlier stages found stays in the row.

    Args:
        finished: the cells.
        spec_digest: digest of the spec that asked for them.

    Raises:
        ValueError: a stage's ``values`` hold what is no column of the table, a column that is
            not a stage's to fill, or a value that does not fit its column.
    """
    cells = [ended.cell for ended in finished]
    found = [_found(ended) for ended in finished]
    known = set().union(*found)
    columns = []
    for field in SCHEMAS["results"]:
        name: str = field.name
        if of_cell := _OF_CELL.get(name):
            values = [of_cell(cell) for cell in cells]
        elif of_fate := _OF_FATE.get(name):
            values = [of_fate(ended) for ended in finished]
        elif name == "spec_digest":
            values = [spec_digest] * len(cells)
        elif name == "notes":
            values = [_notes(ended) for ended in finished]
        elif of_spec := _OF_SPEC.get(name):
            values = [
                row[name] if row.get(name) is not None else of_spec(cell)
                for row, cell in zip(found, cells, strict=True)
            ]
        elif name in known:
            values = [row.get(name) for row in found]
        else:
            columns.append(pa.nulls(len(cells), field.type))
            continue
        columns.append(_array(field, values, cells))
    return pa.table(columns, schema=SCHEMAS["results"])


def _found(ended: FinishedCell) -> Mapping[str, Any]:
    """Merge what the stages found: later ones overwrite, but not with nothing."""
    merged: dict[str, Any] = {}
    for outcome in ended.outcomes:
        if not outcome.values.keys() <= _FREE:
            alien = sorted(outcome.values.keys() - _FREE)
            raise ValueError(
                f"cell {ended.cell.cell_id}: a stage has no column '{alien[0]}' to fill"
            )
        merged.update(item for item in outcome.values.items() if item[1] is not None)
    return merged


def _array(field: pa.Field, values: list[Any], cells: Sequence[Cell]) -> pa.Array:
    if field.name in _WHOLE:
        # Arrow cuts a fraction off without a word.
        for value, cell in zip(values, cells, strict=True):
            is_whole = getattr(value, "is_integer", None)
            if is_whole is not None and not is_whole():
                raise ValueError(
                    f"cell {cell.cell_id}: column '{field.name}' takes whole numbers, not {value}"
                )
    try:
        return pa.array(values, field.type, from_pandas=True)  # NaN is null
    except (pa.ArrowException, OverflowError):
        for value, cell in zip(values, cells, strict=True):
            try:
                pa.array([value], field.type)
            except (pa.ArrowException, OverflowError) as error:
                raise ValueError(f"cell {cell.cell_id}: column '{field.name}': {error}") from error
        raise


def _percentile(calibration: Calibration) -> float | None:
    return calibration.percentile if calibration.observer == "percentile" else None


def _notes(ended: FinishedCell) -> list[str] | None:
    """Give what there is, each once, in order; a reason that is the error is said there."""
    reason = ended.cell.reason if ended.cell.reason != ended.error else ""
    found = (outcome.values.get("notes") or () for outcome in ended.outcomes)
    notes = [reason, *itertools.chain.from_iterable(found)]
    return list(dict.fromkeys(note for note in notes if note)) or None
