"""Datasets: what a dataset callable may return, and the split that nobody can get wrong."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Arrays, Calibration, Ref
from qb_cluster.errors import DataError

LONE_INPUT = "input"
HELD_OUT_SHARE = 5  # one in five examples …
HELD_OUT_MOST = 512  # … but no more than this many, where a dataset names no calibration part


@dataclass(frozen=True, slots=True)
class Dataset:
    """Evaluation and calibration examples, disjoint by id.

    Attributes:
        inputs: evaluation inputs by name, ``n`` examples along axis 0.
        targets: length ``n`` along axis 0.
        ids: ``n`` distinct strings.
        calibration: calibration inputs by name, possibly of zero examples.
        calibration_ids: their distinct strings.
        total: examples of the whole dataset, those for calibration included.
    """

    inputs: Arrays
    targets: NDArray[Any]
    ids: NDArray[np.str_]
    calibration: Arrays
    calibration_ids: NDArray[np.str_]
    total: int

    def example(self) -> dict[str, NDArray[Any]]:
        """Give the first evaluation example, as a batch of one."""
        return _take(self.inputs, slice(1))

    def evaluation(self, examples: int | None) -> "Dataset":
        """Keep the first ``examples`` evaluation examples (``None``: all)."""
        if examples is None or examples >= len(self.ids):
            return self
        return Dataset(
            _take(self.inputs, slice(examples)),
            self.targets[:examples],
            self.ids[:examples],
            self.calibration,
            self.calibration_ids,
            self.total,
        )

    def calibration_sample(self, calibration: Calibration) -> Arrays:
        """Draw calibration examples without replacement, by seed; in dataset order.

        Raises:
            DataError: there are none.
        """
        available = len(self.calibration_ids)
        if available == 0:
            raise DataError(
                "a static scheme needs calibration examples and the dataset has none: return "
                "a 'calibration' part, or more examples"
            )
        chosen = np.random.default_rng(calibration.seed).choice(
            available, size=min(calibration.samples, available), replace=False
        )
        return _take(self.calibration, np.sort(chosen))


def load_dataset(ref: Ref) -> Dataset:
    """Call a dataset and check what it returns.

    Raises:
        PlugInError: it cannot be found, or raised.
        DataError: it breaks the contract, or evaluation and calibration share an id.
    """
    return as_dataset(plugins.make("dataset", ref), ref.label)


def as_dataset(raw: Any, name: str) -> Dataset:
    """Check and complete what a dataset callable returned.

    Args:
        raw: a mapping, or an object with attributes: ``inputs`` (an array, or arrays by
            name), ``targets``, and optionally ``ids`` and ``calibration`` (inputs, or a
            mapping of ``inputs`` and optionally ``ids``). Without ``ids`` an example is
            known by a hash of its content. Without ``calibration`` one example in five, at
            most 512, chosen by a hash of its id, is held out for it.
        name: for messages.

    Raises:
        DataError: it breaks the contract, or evaluation and calibration share an id.
    """
    fields = _fields(raw, name)
    inputs = _inputs(fields["inputs"], f"dataset '{name}': inputs")
    targets = np.asarray(fields["targets"])
    count = _length(inputs)
    if targets.ndim == 0 or len(targets) != count:
        raise DataError(
            f"dataset '{name}': {count} inputs but targets of shape {targets.shape}; "
            "they must have one entry an example"
        )
    if count == 0:
        raise DataError(f"dataset '{name}' has no examples")
    ids = _ids(fields.get("ids"), inputs, f"dataset '{name}'")
    if fields.get("calibration") is None:
        return _hold_out(inputs, targets, ids)
    part = fields["calibration"]
    named = isinstance(part, Mapping) and "inputs" in part
    calibration = _inputs(
        part["inputs"] if named else part, f"dataset '{name}': calibration inputs"
    )
    if set(calibration) != set(inputs):
        raise DataError(
            f"dataset '{name}': inputs are {sorted(inputs)} but calibration has "
            f"{sorted(calibration)}"
        )
    given = part.get("ids") if named else None
    if (given is None) != (fields.get("ids") is None):
        # Ids on one side only cannot be compared: know both sides by content.
        ids_to_compare, given = _ids(None, inputs, name), None
    else:
        ids_to_compare = ids
    calibration_ids = _ids(given, calibration, f"dataset '{name}': calibration")
    shared = np.intersect1d(_content(ids_to_compare), _content(calibration_ids))
    if len(shared):
        raise DataError(
            f"dataset '{name}': {len(shared)} examples are in evaluation and in calibration "
            f"(first: {shared[0]}); a model calibrated on what it is judged by proves nothing"
        )
    total = len(ids) + len(calibration_ids)
    return Dataset(inputs, targets, ids, calibration, calibration_ids, total)


def _fields(raw: Any, name: str) -> Mapping[str, Any]:
    keys = ("inputs", "targets", "ids", "calibration")
    if isinstance(raw, Mapping):
        fields = {key: raw[key] for key in keys if key in raw}
    else:
        fields = {key: getattr(raw, key) for key in keys if hasattr(raw, key)}
    missing = [key for key in ("inputs", "targets") if fields.get(key) is None]
    if missing:
        raise DataError(
            f"dataset '{name}' returned {type(raw).__name__} without {' and '.join(missing)}; "
            "return a mapping with inputs and targets"
        )
    return fields


def _inputs(raw: Any, what: str) -> dict[str, NDArray[Any]]:
    arrays = dict(raw) if isinstance(raw, Mapping) else {LONE_INPUT: raw}
    checked = {}
    for key, values in arrays.items():
        array = np.asarray(values)
        if array.dtype.kind not in "fiub" or array.ndim == 0:
            raise DataError(
                f"{what}: '{key}' is an array of {array.dtype} and shape {array.shape}; "
                "numbers with examples along axis 0 are needed"
            )
        # Models are float32; NumPy makes float64 of everything it is not told about.
        checked[str(key)] = array.astype(np.float32) if array.dtype == np.float64 else array
    lengths = {len(array) for array in checked.values()}
    if len(lengths) != 1:
        raise DataError(f"{what}: arrays of unequal lengths {sorted(lengths)}")
    return checked


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _take(arrays: Arrays, which: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    return {key: array[which] for key, array in arrays.items()}


def _ids(given: Any, inputs: Arrays, what: str) -> NDArray[np.str_]:
    count = _length(inputs)
    if given is None:
        seen: dict[str, int] = {}
        names = []
        for row in range(count):
            digest = hashlib.blake2b(digest_size=8)
            for key in sorted(inputs):
                digest.update(np.ascontiguousarray(inputs[key][row]).tobytes())
            content = digest.hexdigest()
            seen[content] = seen.get(content, 0) + 1
            names.append(content if seen[content] == 1 else f"{content}#{seen[content]}")
        return np.array(names, dtype=np.str_)
    ids = np.asarray(given).astype(np.str_)
    if ids.shape != (count,):
        raise DataError(f"{what}: {count} inputs but ids of shape {ids.shape}")
    distinct, counts = np.unique(ids, return_counts=True)
    if len(distinct) != count:
        raise DataError(f"{what}: id '{distinct[counts > 1][0]}' is given to more than one example")
    return ids


def _content(ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Strip the ordinal that tells equal contents apart, so that copies count as shared."""
    return np.array([name.partition("#")[0] for name in ids], dtype=np.str_)


def _hold_out(inputs: Arrays, targets: NDArray[Any], ids: NDArray[np.str_]) -> Dataset:
    count = len(ids)
    # Copies of one content fall on the same side, since the hash is of the content.
    content = _content(ids)
    order = np.argsort([hashlib.blake2b(name.encode()).digest() for name in content])
    held = np.zeros(count, dtype=bool)
    most = min(count // HELD_OUT_SHARE, HELD_OUT_MOST)
    if most:
        held[np.isin(content, content[order[:most]])] = True
    if held.all():
        held[:] = False
    kept = np.flatnonzero(~held)
    out = np.flatnonzero(held)
    held_out = _take(inputs, out), ids[out]
    return Dataset(_take(inputs, kept), targets[kept], ids[kept], *held_out, len(ids))
