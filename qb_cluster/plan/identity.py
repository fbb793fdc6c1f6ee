"""The name of a cell: a hash of everything that decides its numbers.

The hash is over one canonical JSON object: keys in alphabetical order, no spaces, with the keys
``backend, bits, calibration, dataset, device, execution, measure, model, scheme``. A million
cells share few values, so each value is written once and a cell's object is put together.
"""

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

from qb_cluster.contracts import Bits, Calibration, Device, Measure, Ref


def canonical(value: Any) -> str:
    """Write JSON in its one canonical form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@lru_cache(maxsize=2**12)
def fragment(value: Ref | Bits | Device | Calibration | Measure | None) -> str:
    """Write one value of a cell. Labels are left out: they name results, they change none."""
    match value:
        case None:
            return "null"
        case Ref():
            return canonical(_target(value))
        case Bits():
            return canonical(str(value))
        case Device():
            # A name of the user's own is a label too: what its nodes are says more.
            place: dict[str, Any] = {"name": value.name}
            if value.labels or value.gpus:
                place = {"labels": value.labels}
            if value.gpus:  # left out where it is 0: cells without GPUs keep their names
                place["gpus"] = value.gpus
            return canonical({**place, "threads": value.threads})
        case Measure():
            return canonical(asdict(value) | {"metric": _target(value.metric)})
        case _:
            return canonical(asdict(value))


def _target(ref: Ref) -> dict[str, Any]:
    return {"target": ref.target, "options": ref.options}


class Inner(NamedTuple):
    """The part of a cell's canonical object that varies within a group, as JSON."""

    bits: str
    calibration: str
    execution: str
    measure: str
    scheme: str


class GroupIdentity:
    """Names the cells that share a model, a dataset, a device and a backend."""

    __slots__ = ("_backend", "_middle", "_model")

    def __init__(self, model: Ref, dataset: Ref, device: Device, backend: Ref) -> None:
        self._backend = f'{{"backend":{fragment(backend)},"bits":'
        self._middle = f',"dataset":{fragment(dataset)},"device":{fragment(device)},"execution":'
        self._model = f',"model":{fragment(model)},"scheme":'

    def cell_id(self, inner: Inner) -> str:
        """Give 16 hex digits."""
        bits, calibration, execution, measure, scheme = inner
        text = (
            f'{self._backend}{bits},"calibration":{calibration}{self._middle}{execution}'
            f',"measure":{measure}{self._model}{scheme}}}'
        )
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
