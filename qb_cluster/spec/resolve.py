"""What the keys of a sweep spec mean together: entries made, settings merged, rules checked."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

from qb_cluster.contracts import Bits, Calibration, Measure
from qb_cluster.errors import PlugInError
from qb_cluster.spec.document import Document, Location, spec_error
from qb_cluster.spec.entries import Entries, ref_of
from qb_cluster.spec.rules import misfits, why_nothing
from qb_cluster.spec.schema import (
    CalibrationKeys,
    IncludeKeys,
    Keys,
    LatencyKeys,
    MatchKeys,
    MeasureKeys,
    OverrideKeys,
    SweepKeys,
)
from qb_cluster.spec.sweep import (
    AXES,
    Axis,
    Change,
    Match,
    NamedScheme,
    Override,
    Product,
    Requested,
    Settings,
    SweepSpec,
    label_of,
)

_KEYS: Final[dict[Axis, str]] = {
    "model": "models",
    "dataset": "datasets",
    "scheme": "schemes",
    "bits": "bits",
    "backend": "backends",
    "device": "devices",
    "execution": "execution",
}

Misfit = tuple[Location, str]
"""Where in the spec, and what is wrong there."""


def resolve_sweep(document: Document, keys: SweepKeys) -> SweepSpec:
    """Turn validated keys into a sweep.

    Raises:
        SpecError: entries that cannot be made or are there twice, bits that no scheme takes,
            or rules that match nothing; all of them, with their places.
    """
    entries = Entries(document)
    grid = _grid(entries, keys)
    includes = tuple(
        _include(entries, grid, include, ("include", index))
        for index, include in enumerate(keys.include)
    )
    settings = _change(keys.calibration, keys.measure).applied_to(
        Settings("auto", Calibration(), Measure(), keys.timeout_s)
    )
    if entries.problems:
        raise spec_error(document.source, entries.problems)
    spec = SweepSpec(
        sweep=keys.sweep,
        grid=grid,
        includes=includes,
        exclude=tuple(map(_match, keys.exclude)),
        overrides=tuple(map(_override, keys.overrides)),
        calibration=settings.calibration,
        measure=settings.measure,
        timeout_s=settings.timeout_s,
        max_cells=keys.max_cells,
        source=document.source,
        text=document.text,
        digest=_digest(keys),
    )
    misplaced = [
        *_grid_misfits(grid),
        *_include_misfits(spec, keys),
        *_rule_misfits(spec),
    ]
    if misplaced:
        raise spec_error(document.source, [document.problem(*misfit) for misfit in misplaced])
    return spec


def _grid(entries: Entries, keys: SweepKeys) -> Product:
    axes: dict[str, Any] = {
        axis: entries.axis(axis, getattr(keys, key), (key,)) for axis, key in _KEYS.items()
    }
    return Product(**axes)


def _include(entries: Entries, grid: Product, keys: IncludeKeys, at: Location) -> Product:
    axes: dict[str, Any] = {
        axis: entries.included(axis, getattr(keys, axis), (*at, axis))
        if axis in keys.model_fields_set
        else grid.entries(axis)
        for axis in AXES
    }
    return Product(**axes)


# Settings


def _given(keys: Keys) -> dict[str, Any]:
    return {name: getattr(keys, name) for name in keys.model_fields_set}


def _change(calibration: CalibrationKeys, measure: MeasureKeys, **others: Any) -> Change:
    measured = _given(measure)
    latency = measured.pop("latency", None)
    if "metric" in measured:
        measured["metric"] = ref_of(measured["metric"])
    return Change(
        calibration=_given(calibration),
        measure=measured,
        latency=_given(latency) if isinstance(latency, LatencyKeys) else latency,
        **others,
    )


def _override(keys: OverrideKeys) -> Override:
    others = _given(keys.set)
    change = _change(
        others.pop("calibration", CalibrationKeys()),
        others.pop("measure", MeasureKeys()),
        **others,
    )
    return Override(_match(keys.when), change)


def _match(keys: MatchKeys) -> Match:
    return Match({axis: tuple(getattr(keys, axis)) for axis in AXES if getattr(keys, axis)})


def _digest(keys: SweepKeys) -> str:
    content = keys.model_dump(mode="json")
    # An override that sets a default is not one that leaves it alone.
    content["overrides"] = [o.model_dump(mode="json", exclude_unset=True) for o in keys.overrides]
    said = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


# What fits nothing


def _grid_misfits(grid: Product) -> Iterator[Misfit]:
    for index, scheme in enumerate(grid.scheme):
        if (why := _no_bits(scheme, grid)) is not None:
            yield ("schemes", index), why
    for index, bits in enumerate(grid.bits):
        if (why := _no_scheme(bits, grid)) is not None:
            yield ("bits", index), why


def _include_misfits(spec: SweepSpec, keys: SweepKeys) -> Iterator[Misfit]:
    for index, (product, include) in enumerate(zip(spec.includes, keys.include, strict=True)):
        at: Location = ("include", index)
        lonely: list[Misfit] = []
        if "scheme" in include.model_fields_set:
            reasons = enumerate(_no_bits(scheme, product) for scheme in product.scheme)
            lonely += [((*at, "scheme", i), why) for i, why in reasons if why is not None]
        if "bits" in include.model_fields_set:
            reasons = enumerate(_no_scheme(bits, product) for bits in product.bits)
            lonely += [((*at, "bits", i), why) for i, why in reasons if why is not None]
        yield from lonely
        try:
            if not lonely and _adds_nothing(product, spec):
                yield at, "it adds nothing: the sweep has all of these cells without it"
        except PlugInError as error:
            yield at, str(error)


def _adds_nothing(product: Product, spec: SweepSpec) -> bool:
    requested = _requested(spec)
    return all(set(product.entries(axis)) <= set(spec.grid.entries(axis)) for axis in AXES) and all(
        why_nothing(match, [product], requested) is not None for match in spec.exclude
    )


def _requested(spec: SweepSpec) -> list[Requested]:
    """Give the executions that overrides ask for."""
    return [o.change.execution for o in spec.overrides if o.change.execution is not None]


def _no_bits(named: NamedScheme, product: Product) -> str | None:
    scheme = named.scheme
    if any(scheme.takes(bits) for bits in product.bits):
        return None
    form = "wN (like w4)" if scheme.activations == "none" else "wNaM (like w8a8)"
    listed = ", ".join(map(str, product.bits[:8]))
    return f"scheme '{named.ref.label}' takes {form} and so none of the bits here: {listed}"


def _no_scheme(bits: Bits, product: Product) -> str | None:
    if any(scheme.scheme.takes(bits) for scheme in product.scheme):
        return None
    needed = (
        "leaves activations float (like weight_only)"
        if bits.activation is None
        else "quantizes activations (like dynamic or static)"
    )
    listed = ", ".join(label_of(scheme) for scheme in product.scheme[:8])
    return f"no scheme here takes {bits}: that is for one that {needed}; here: {listed}"


def _rule_misfits(spec: SweepSpec) -> Iterator[Misfit]:
    requested = _requested(spec)
    rules: list[tuple[Location, Match, tuple[Product, ...]]] = [
        *((("exclude", i), match, (spec.grid,)) for i, match in enumerate(spec.exclude)),
        *((("overrides", i, "when"), o.when, spec.products) for i, o in enumerate(spec.overrides)),
    ]
    for at, match, products in rules:
        try:
            for place, why in misfits(match, products, requested):
                yield (*at, *place), why
        except PlugInError as error:
            yield at, str(error)
