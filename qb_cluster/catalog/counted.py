"""What of a cell counts in a key: all of it, less what is named here with a reason.

So a field that a cell, its measure, its calibration or its device gets tomorrow counts in every
key until somebody writes down why it need not.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final

from qb_cluster.contracts import Cell, Device, Measure, Ref


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """What counts in keys of one kind.

    Attributes:
        but: the fields that do not, by the class that has them, each with its reason.
    """

    but: Mapping[type, Mapping[str, str]]

    def text(self, cell: Cell) -> str:
        """Write what counts of a cell: a line a field, its name and its value as JSON."""
        return _text(self, _values(self)(cell))

    def part(self, value: Any) -> str:
        """Write what counts of a part of a cell, hashable, as JSON."""
        return _json(self, value)


@cache
def _counting(counted: Counted, kind: type[Any]) -> tuple[str, ...]:
    named = counted.but.get(kind, {})
    return tuple(field.name for field in fields(kind) if field.name not in named)


@cache
def _values(counted: Counted) -> Callable[[Cell], tuple[Any, ...]]:
    return attrgetter(*_counting(counted, Cell))


@lru_cache(maxsize=2**12)  # a million cells share few, and each asks
def _text(counted: Counted, values: tuple[Any, ...]) -> str:
    named = zip(_counting(counted, Cell), values, strict=True)
    return "\n".join(f"{name} {_json(counted, value)}" for name, value in named)


@lru_cache(maxsize=2**12)
def _json(counted: Counted, value: Any) -> str:
    return json.dumps(_plain(counted, value), sort_keys=True)


def _plain(counted: Counted, value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        names = _counting(counted, type(value))
        return {name: _plain(counted, getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(counted, item) for item in value]
    return value


_REF: Final = {"label": "it names results and changes none"}
_CELL: Final = {
    "cell_id": "it is a hash of the other fields",
    "sweep": "it names results and changes none",
    "model": "the digest of what it loads counts",
    "dataset": "the digest of what it loads counts",
    "backend": "the digest of its code and options counts",
    "scheme": "the digest of its options and code counts",
    "reason": "it is text for the reader",
    "timeout_s": "it decides whether there are numbers, not which",
    "timeout_retries": "it decides whether there are numbers, not which",
    "baseline_cell_id": "it is a hash of the other fields",
    "simulator": "it judges the numbers and makes none of them",
}
_WHERE: Final = "it says where a device is; the hardware's fingerprint says what it is"

RESULT: Final = Counted(
    {
        Cell: _CELL,
        Ref: _REF,
        Device: dict.fromkeys(("name", "labels", "backends", "ssh", "prepared_on"), _WHERE),
        Measure: {
            "metric": "the digest of its code and options counts",
            "latency": "it counts apart, for cells that have been timed",
        },
    }
)
"""In the key of a cell's numbers."""

ARTIFACT: Final = Counted(
    {
        Cell: _CELL
        | {
            "device": "the fingerprint of the machine that makes the artifact counts",
            "measure": "an artifact is made before anything is measured",
        },
        Ref: _REF,
    }
)
"""In the key of an artifact: one serves all cells that ask the same of a backend."""

TWIN: Final = Counted(
    {
        Cell: _CELL
        | {
            "backend": "the digest of the backend that simulates counts",
            "device": "one simulation serves all devices",
            "execution": "a twin is simulated whatever the cell is",
        },
        Ref: _REF,
        Measure: {
            "metric": "it is made of outputs, and these are the outputs",
            "confidence": "it is of intervals, which are made of outputs",
            "latency": "a simulation is not timed",
            "layers": "layers are measured apart",
        },
    }
)
"""In the name of simulated outputs: one twin serves all backends and devices."""
