"""Tasks and outcomes as bytes: what the tasks of a call share travels once.

Ray takes bytes as they are; its own pickler, made for closures, costs the driver several times as
much. Frozen dataclasses are written as a call of their class, since the way of Python 3.11, in
which state is set field by field in Python, takes up to four times as long.
"""

import copyreg
import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from qb_cluster import contracts


def pack(values: Iterable[Any]) -> bytes:
    """Make bytes of values."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(tuple(values))
    return file.getvalue()


def unpack(data: bytes) -> tuple[Any, ...]:
    """Undo ``pack``. Only for bytes that a driver and its own workers exchange."""
    values: tuple[Any, ...] = pickle.loads(data)  # noqa: S301
    return values


def _as_call(cls: type) -> Callable[[Any], tuple[type, Any]]:
    names = [field.name for field in fields(cls)]
    values = attrgetter(*names)
    if len(names) == 1:
        return lambda value: (cls, (values(value),))
    return lambda value: (cls, values(value))


class _Pickler(pickle.Pickler):
    dispatch_table = copyreg.dispatch_table | {
        cls: _as_call(cls)
        for cls in vars(contracts).values()
        if isinstance(cls, type) and is_dataclass(cls)
    }
