"""What each layer of a model may be quantized to: what it costs in noise and takes in bytes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from qb_cluster.contracts import Bits
from qb_cluster.contracts.coverage import LayerKind

FLOAT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Storage:
    """How an artifact will store a model.

    Attributes:
        parameters: of the whole model.
        stored_bytes: of a layer's weight with its scales, from its kind, shape and bits; ``None``
            where it stays float.
        refusal: why bits cannot be had; nothing where they can.
    """

    parameters: int
    stored_bytes: Callable[[LayerKind, tuple[int, ...], Bits], float | None]
    refusal: Callable[[Bits], str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What layers that must have the same bits may be quantized to, ascending in weight bits.

    Attributes:
        layers: their names; one, but where several share a weight.
        kinds: of these layers.
        parameters: of their weights.
        bits: the bit-widths; none where they stay float.
        noise: of the outputs at each, as a share of the signal's power.
        stored: bytes of the weights at each, scales included.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    parameters: int
    bits: tuple[Bits, ...]
    noise: tuple[float, ...]
    stored: tuple[float, ...]


def choices(layers: pd.DataFrame, storage: Storage | None = None) -> list[Choice]:
    """Read what was measured.

    Args:
        layers: rows of the table ``layers``; those of mode ``only`` count.
        storage: how weights will be stored; ``None`` takes their bits alone.

    Returns:
        In the order of the model.

    Raises:
        ValueError: there are no measurements, a layer was measured twice at the same bits, has no
            finite SQNR, or none of the bits that were measured can be had.
    """
    only = _once(layers[layers["mode"] == "only"])
    refusals: dict[str, str] = {}
    if storage is not None:
        refusals = {bits: storage.refusal(Bits.parse(bits)) for bits in only["bits"].unique()}
    usable = [bits for bits in only["bits"].unique() if not refusals.get(bits)]
    if not usable:
        reasons = "; ".join(f"{bits}: {reason}" for bits, reason in refusals.items())
        raise ValueError(f"no width that was measured can be run natively ({reasons})")
    groups: dict[tuple[str, ...], list[str]] = {}
    for layer, rows in only.groupby("layer", sort=False):
        together = _list(rows, "same_bits") or (str(layer),)
        groups.setdefault(together, []).append(str(layer))
    by_layer = dict(iter(only.groupby("layer", sort=False)))
    return [
        _choice([by_layer[name] for name in names], together, usable, storage)
        for together, names in groups.items()
    ]


def _once(only: pd.DataFrame) -> pd.DataFrame:
    if only.empty:
        raise ValueError(
            "no layer was measured; run simulated cells with `measure: {layers: true}`"
        )
    only = only.drop_duplicates(["layer", "bits", "sqnr_db"])
    twice = only[only.duplicated(["layer", "bits"])]
    if not twice.empty:
        layer, bits = twice.iloc[0][["layer", "bits"]]
        raise ValueError(
            f"layer '{layer}' was measured twice at {bits}: give the cells of one model, scheme "
            "and calibration"
        )
    return only


def _choice(
    rows: list[pd.DataFrame],
    together: tuple[str, ...],
    usable: Iterable[str],
    storage: Storage | None,
) -> Choice:
    """Put layers together that take the same bits; a weight that they share counts once."""
    weights: dict[str, pd.DataFrame] = {}
    for one in rows:
        own = _text(one, "weight") or str(one["layer"].iloc[0])
        weights.setdefault(own, one)
    parts = list(weights.values())
    best: dict[int, tuple[float, float, Bits]] = {}  # of equal weight bits the least noise
    for text in usable:
        if not all((part["bits"] == text).any() for part in parts):
            continue  # of layers with bits of their own
        bits = Bits.parse(text)
        noise = sum(_noise(part[part["bits"] == text]) for part in parts)
        stored = [_stored(part, bits, storage) for part in parts]
        if not any(size is None for size in stored):
            found = (noise, sum(size for size in stored if size is not None), bits)
            best[bits.weight] = min(best.get(bits.weight, found), found, key=lambda one: one[0])
    ascending = [best[weight] for weight in sorted(best)]
    return Choice(
        together,
        tuple(dict.fromkeys(kind for part in rows if (kind := _text(part, "kind")))),
        sum(int(part["parameters"].iloc[0]) for part in parts),
        tuple(bits for _, _, bits in ascending),
        tuple(noise for noise, _, _ in ascending),
        tuple(stored for _, stored, _ in ascending),
    )


def _noise(row: pd.DataFrame) -> float:
    noise = float(10 ** (-row["sqnr_db"].to_numpy(np.float64)[0] / 10))
    if not np.isfinite(noise):
        layer = row["layer"].iloc[0]
        raise ValueError(f"layer '{layer}' has no finite SQNR at some width; leave it out")
    return noise


def _stored(part: pd.DataFrame, bits: Bits, storage: Storage | None) -> float | None:
    parameters = int(part["parameters"].iloc[0])
    kind: Any = _text(part, "kind")
    if storage is None or not kind:
        return parameters * bits.weight / 8
    return storage.stored_bytes(kind, tuple(map(int, _list(part, "shape"))), bits)


def _text(part: pd.DataFrame, column: str) -> str:
    value = part[column].iloc[0] if column in part else None
    return "" if value is None or pd.isna(value) else str(value)


def _list(part: pd.DataFrame, column: str) -> tuple[Any, ...]:
    value = part[column].iloc[0] if column in part else None
    return tuple(value) if isinstance(value, list | tuple | np.ndarray) else ()


def bits_per_weight(
    found: Iterable[Choice], chosen: Mapping[Choice, int], storage: Storage | None
) -> float:
    """Give what an artifact's column ``bits_per_weight`` will say.

    Args:
        found: what there is to choose from.
        chosen: which of its widths each takes.
        storage: gives the size of the model, of which the rest is float32; ``None`` counts the
            layers alone.
    """
    total = covered = stored = 0.0
    for choice in found:
        covered += choice.parameters
        stored += choice.stored[chosen[choice]] if choice.bits else FLOAT_BYTES * choice.parameters
    total = covered if storage is None else max(covered, storage.parameters)
    return 8 * (stored + FLOAT_BYTES * (total - covered)) / total
