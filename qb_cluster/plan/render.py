"""A plan for people and for programs, line by line as the cells come."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Bits, Calibration, Cell, Latency, Ref, Scheme
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.quantization.grid import Grid
from qb_cluster.spec import label_of

_HEADING: Final = (
    "cell_id",
    "model",
    "dataset",
    "backend",
    "device",
    "scheme",
    "bits",
    "calibration",
    "execution",
    "why",
)
_MEASURED: Final = 1_000  # cells that decide the widths of the columns


def plan_lines(cells: Iterable[Cell]) -> Iterator[str]:
    """Give a heading, a line a cell in columns, and a summary.

    Columns are as wide as the first thousand cells need; a longer label that comes later moves
    the rest of its line. Cells are read as lines are taken, and not kept.
    """
    cells = iter(cells)
    first = list(islice(cells, _MEASURED))
    table = [_HEADING, *map(_fields, first)]
    widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:-1]]
    line = " ".join([*(f"{{:<{width}}}" for width in widths), "{}"])
    yield line.format(*_HEADING).rstrip()
    seen: Counter[str] = Counter()
    for cell in chain(first, cells):
        seen["baseline" if cell.is_baseline else cell.execution or "unsupported"] += 1
        yield line.format(*_fields(cell)).rstrip()
    yield (
        f"{seen.total()} cells: {seen['native']} native, {seen['simulated']} simulated, "
        f"{seen['unsupported']} unsupported, {seen['baseline']} float baselines"
    )


def plan_json_lines(cells: Iterable[Cell]) -> Iterator[str]:
    """Give a JSON object a cell, under the names that the results have."""
    for cell in cells:
        yield json.dumps(_as_json(cell), ensure_ascii=False)


def _fields(cell: Cell) -> tuple[str, ...]:
    return (
        cell.cell_id,
        cell.model.label,
        cell.dataset.label,
        cell.backend.label,
        label_of(cell.device),
        "float" if cell.scheme is None else cell.scheme.label,
        "f32" if cell.bits is None else str(cell.bits),
        calibration_label(cell.calibration),
        cell.execution or "unsupported",
        "; ".join(filter(None, (_grid(cell.scheme, cell.bits), cell.reason))),
    )


@lru_cache(maxsize=256)
def _grid(ref: Ref | None, bits: Bits | None) -> str:
    """Name the integers of the weights; empty for the usual ±(2^(b-1) - 1), and for floats."""
    if ref is None or bits is None:
        return ""
    scheme: Scheme = plugins.make("scheme", ref)
    if scheme.number != "integer" or scheme.weight_quantizer is not None:
        return ""
    grid = Grid.of(scheme, bits.weight)
    return "" if grid.kind == "narrow" else f"weights {grid}"


def _as_json(cell: Cell) -> dict[str, Any]:
    return {
        "cell_id": cell.cell_id,
        "sweep": cell.sweep,
        "model": cell.model.label,
        "dataset": cell.dataset.label,
        "backend": cell.backend.label,
        "device": cell.device.name,
        "device_labels": dict(cell.device.labels),
        "gpus": cell.device.gpus,
        "threads": cell.device.threads,
        "scheme": "float" if cell.scheme is None else cell.scheme.label,
        "bits": "f32" if cell.bits is None else str(cell.bits),
        "execution": cell.execution,
        "reason": cell.reason,
        "calibration": _as_dict(cell.calibration),
        "metric": cell.measure.metric.label,
        "batch_size": cell.measure.batch_size,
        "examples": cell.measure.examples,
        "confidence": cell.measure.confidence,
        "latency": _as_dict(cell.measure.latency),
        "layers": cell.measure.layers,
        "timeout_s": cell.timeout_s,
        "timeout_retries": cell.timeout_retries,
        "baseline_cell_id": cell.baseline_cell_id,
        "simulator": None if cell.simulator is None else cell.simulator.label,
    }


@lru_cache(maxsize=256)
def _as_dict(value: Calibration | Latency | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
