"""What the keys of a sweep spec mean together: entries made, settings merged, rules checked."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product as every
from typing import Any, Final

from qb_cluster.catalog.plugins import nearest
from qb_cluster.contracts import Bits, Calibration, Measure, Ref
from qb_cluster.contracts.judgement import EVERY_CELL, Judgement, ToleranceRule
from qb_cluster.contracts.match import AXES, Axis, Match
from qb_cluster.contracts.tolerance import SHARES
from qb_cluster.errors import PlugInError
from qb_cluster.spec.device_keys import DeviceKeys
from qb_cluster.spec.document import Document, Location, spec_error
from qb_cluster.spec.entries import Entries, ref_of
from qb_cluster.spec.keys import Keys
from qb_cluster.spec.rules import misfits, why_nothing
from qb_cluster.spec.schema import (
    CalibrationKeys,
    IncludeKeys,
    LatencyKeys,
    MatchKeys,
    MeasureKeys,
    OverrideKeys,
    SetCalibrationKeys,
    SweepKeys,
)
from qb_cluster.spec.sweep import (
    Change,
    NamedScheme,
    Override,
    Product,
    Settings,
    SweepSpec,
    effective,
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

MOST_CALIBRATIONS: Final = 1_000  # of a sweep or an include: its lists multiply

_OUTERMOST: Final = ("observer", "percentile", "samples", "seed")
"""Fields of a calibration in the order of the plan, the slowest first."""

_JUDGED: Final = ("tolerance", "adjust")
"""Keys of ``measure`` that say how results are judged, and change no cell."""

Misfit = tuple[Location, str]
"""Where in the spec, and what is wrong there."""


def resolve_sweep(document: Document, keys: SweepKeys) -> SweepSpec:
    """Turn validated keys into a sweep.

    Raises:
        SpecError: entries that cannot be made or are there twice, bits that no scheme takes,
            or rules that match nothing; all of them, with their places.
    """
    wrong = [*_calibration_misfits(keys), *_metric_misfits(keys), *_tolerance_misfits(keys)]
    if wrong:
        raise spec_error(document.source, [document.problem(*misfit) for misfit in wrong])
    entries = Entries(document)
    grid = _grid(entries, keys)
    includes = tuple(
        _include(entries, grid, keys, include, ("include", index))
        for index, include in enumerate(keys.include)
    )
    settings = _change(
        keys.measure, timeout_s=keys.timeout_s, timeout_retries=keys.timeout_retries
    ).applied_to(Settings("auto", None, Measure(), keys.timeout_s))
    if entries.problems:
        raise spec_error(document.source, entries.problems)
    spec = SweepSpec(
        sweep=keys.sweep,
        grid=grid,
        includes=includes,
        exclude=tuple(map(_match, keys.exclude)),
        overrides=tuple(map(_override, keys.overrides)),
        judgement=_judgement(keys, [grid, *includes]),
        measure=settings.measure,
        timeout_s=settings.timeout_s,
        timeout_retries=settings.timeout_retries,
        max_cells=keys.max_cells,
        source=document.source,
        text=document.text,
        digest=_digest(keys),
    )
    misplaced = [
        *_grid_misfits(grid, keys),
        *_device_misfits(spec, keys),
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
    return Product(**axes, calibration=_calibrations(keys.calibration, {}))


def _include(
    entries: Entries, grid: Product, sweep: SweepKeys, keys: IncludeKeys, at: Location
) -> Product:
    axes: dict[str, Any] = {
        axis: entries.included(axis, getattr(keys, axis), (*at, axis))
        if axis in keys.model_fields_set
        else grid.entries(axis)
        for axis in _KEYS
    }
    if "scheme" not in keys.model_fields_set:
        axes["scheme"] = _meant(axes["scheme"], axes["bits"], keys)
    return Product(**axes, calibration=_calibrations(keys.calibration, _given(sweep.calibration)))


def _meant(
    schemes: tuple[NamedScheme, ...], bits: tuple[Bits, ...], keys: IncludeKeys
) -> tuple[NamedScheme, ...]:
    """Keep the schemes of the sweep that have a use for the bits and calibration of an include.

    Those with bits of their own would come with any, and those that are not static without any.
    Where none is left, all are kept, for the message that says so.
    """
    meant = [
        named
        for named in schemes
        if ("bits" not in keys.model_fields_set or any(map(named.scheme.takes, bits)))
        and ("calibration" not in keys.model_fields_set or named.is_calibrated)
    ]
    return tuple(meant) or schemes


def _calibrations(
    keys: CalibrationKeys, inherited: Mapping[str, list[Any]]
) -> tuple[Calibration, ...]:
    given = _given(keys)
    lists = [given.get(name, inherited.get(name, getattr(keys, name))) for name in _OUTERMOST]
    return tuple(
        Calibration(**dict(zip(_OUTERMOST, values, strict=True))) for values in every(*lists)
    )


# Settings


def _given(keys: Keys) -> dict[str, Any]:
    return {name: getattr(keys, name) for name in keys.model_fields_set}


def _change(measure: MeasureKeys, **others: Any) -> Change:
    measured = _given(measure)
    for name in _JUDGED:
        measured.pop(name, None)
    latency = measured.pop("latency", None)
    if "metric" in measured:
        measured["metric"] = ref_of(measured["metric"])
    return Change(
        measure=measured,
        latency=_given(latency) if isinstance(latency, LatencyKeys) else latency,
        **others,
    )


def _override(keys: OverrideKeys) -> Override:
    others = _given(keys.set)
    change = _change(
        others.pop("measure", MeasureKeys()),
        calibration=_given(others.pop("calibration", SetCalibrationKeys())),
        **others,
    )
    return Override(_match(keys.when), change)


def _judgement(keys: SweepKeys, products: Iterable[Product]) -> Judgement:
    given = [(EVERY_CELL, keys.measure), *((_match(o.when), o.set.measure) for o in keys.overrides)]
    rules = tuple(
        ToleranceRule(when, measure.tolerance)
        for when, measure in given
        if "tolerance" in measure.model_fields_set
    )
    metrics = [ref_of(measure.metric) for _, measure in given]
    shares = {metric.label for metric in metrics if metric.target in SHARES}
    others = {metric.label for metric in metrics if metric.target not in SHARES}
    integer = {
        label_of(named)
        for product in products
        for named in product.scheme
        if named.scheme.activations != "none"
    }
    labels = frozenset((shares | SHARES) - others), frozenset(integer)
    return Judgement(rules, keys.measure.adjust, *labels)


def _match(keys: MatchKeys) -> Match:
    return Match({axis: tuple(getattr(keys, axis)) for axis in AXES if getattr(keys, axis)})


def _digest(keys: SweepKeys) -> str:
    content = keys.model_dump(mode="json")
    # A rule that gives a default is not one that leaves it to the sweep.
    for rules in ("include", "overrides"):
        content[rules] = [
            o.model_dump(mode="json", exclude_unset=True) for o in getattr(keys, rules)
        ]
    said = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


# What fits nothing


def _calibration_misfits(keys: SweepKeys) -> Iterator[Misfit]:
    """Tell what is wrong with calibrations in themselves; checked before they are multiplied."""
    places: list[tuple[Location, CalibrationKeys | SetCalibrationKeys]] = [
        (("calibration",), keys.calibration),
        *(
            (("include", i, "calibration"), include.calibration)
            for i, include in enumerate(keys.include)
        ),
        *(
            (("overrides", i, "set", "calibration"), o.set.calibration)
            for i, o in enumerate(keys.overrides)
        ),
    ]
    inherited = _given(keys.calibration)
    for at, calibration in places:
        if isinstance(calibration, CalibrationKeys):
            yield from _list_misfits(at, calibration, inherited)
    if not any("percentile" in calibration.observer for _, calibration in places):
        for at, calibration in places:
            if "percentile" in calibration.model_fields_set:
                yield (
                    (*at, "percentile"),
                    "no observer here has a percentile; add observer: percentile",
                )


def _measures(keys: SweepKeys) -> Iterator[tuple[Location, MeasureKeys]]:
    yield ("measure",), keys.measure
    for index, override in enumerate(keys.overrides):
        yield ("overrides", index, "set", "measure"), override.set.measure


def _metric_misfits(keys: SweepKeys) -> Iterator[Misfit]:
    """Tell which metrics have the label of another: tables could not tell them apart."""
    known: dict[str, Ref] = {}
    for at, measure in _measures(keys):
        metric = ref_of(measure.metric)
        is_named = len(at) == 1 or "metric" in measure.model_fields_set
        if is_named and known.setdefault(metric.label, metric) != metric:
            yield (
                (*at, "metric"),
                f"another metric is called '{metric.label}' already; give this one a label",
            )


def _tolerance_misfits(keys: SweepKeys) -> Iterator[Misfit]:
    """Tell which tolerances have no unit though two are possible, and where `adjust` is no key."""
    usual = keys.measure.metric
    for at, measure in _measures(keys):
        metric = ref_of(measure.metric if "metric" in measure.model_fields_set else usual)
        tolerance = measure.tolerance
        if tolerance is not None and not tolerance.unit and metric.target in SHARES:
            points, relative = f"{tolerance} pt (percentage points)", f"{tolerance} %"
            yield (
                (*at, "tolerance"),
                f"{tolerance} of what? write {points}, or {relative} (of the float model's value)",
            )
        if len(at) > 1 and "adjust" in measure.model_fields_set:
            yield (*at, "adjust"), "it counts the cells of the whole sweep: set it in 'measure'"


def _list_misfits(
    at: Location, keys: CalibrationKeys, inherited: Mapping[str, list[Any]]
) -> Iterator[Misfit]:
    """Tell which entries are there twice, and whether the lists multiply to too many."""
    given = _given(keys)
    for name, values in given.items():
        first = {value: index for index, value in reversed(list(enumerate(values)))}
        for index, value in enumerate(values):
            if first[value] != index:
                yield (*at, name, index), f"'{value}' is listed twice"
    count = math.prod(len(values) for values in {**inherited, **given}.values())
    if count > MOST_CALIBRATIONS:
        yield at, f"these lists make {count:,} calibrations; {MOST_CALIBRATIONS:,} are the most"


def _grid_misfits(grid: Product, keys: SweepKeys) -> Iterator[Misfit]:
    if "bits" not in keys.model_fields_set and not all(s.scheme.fixed_bits for s in grid.scheme):
        yield (), "'bits' is missing"
        return
    for index, scheme in enumerate(grid.scheme):
        if (why := _no_bits(scheme, grid)) is not None:
            yield ("schemes", index), why
    for index, bits in enumerate(grid.bits):
        if (why := _no_scheme(bits, grid)) is not None:
            yield ("bits", index), why


def _device_misfits(spec: SweepSpec, keys: SweepKeys) -> Iterator[Misfit]:
    """Tell which backends of devices the sweep does not have."""
    known = [label_of(backend) for backend in spec.backends]
    written: list[tuple[Location, Any]] = [
        *((("devices", i), device) for i, device in enumerate(keys.devices)),
        *(
            (("include", i, "device", j), device)
            for i, include in enumerate(keys.include)
            for j, device in enumerate(include.device)
        ),
    ]
    for at, device in written:
        for index, name in enumerate(device.backends if isinstance(device, DeviceKeys) else ()):
            if name not in known:
                yield (
                    (*at, "backends", index),
                    f"no backend '{name}' in this sweep{nearest(name, known)}",
                )


def _include_misfits(spec: SweepSpec, keys: SweepKeys) -> Iterator[Misfit]:
    for index, (product, include) in enumerate(zip(spec.includes, keys.include, strict=True)):
        at: Location = ("include", index)
        lonely: list[Misfit] = []
        if "scheme" in include.model_fields_set:
            reasons = enumerate(_no_bits(scheme, product) for scheme in product.scheme)
            lonely += [((*at, "scheme", i), why) for i, why in reasons if why is not None]
        if "calibration" in include.model_fields_set and not any(
            scheme.is_calibrated for scheme in product.scheme
        ):
            lonely.append(
                ((*at, "calibration"), "no scheme here is calibrated: only static ones are")
            )
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
    changes = [override.change for override in spec.overrides]
    return (
        all(set(product.entries(axis)) <= set(spec.grid.entries(axis)) for axis in _KEYS)
        and set(map(effective, product.calibration)) <= set(map(effective, spec.grid.calibration))
        and all(why_nothing(match, [product], changes) is not None for match in spec.exclude)
    )


def _no_bits(named: NamedScheme, product: Product) -> str | None:
    scheme = named.scheme
    if product.bits_of(named):
        return None
    form = "wN (like w4)" if scheme.activations == "none" else "wNaM (like w8a8)"
    listed = ", ".join(map(str, product.bits[:8])) or "there are none"
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
    changes = [override.change for override in spec.overrides]
    rules: list[tuple[Location, Match, tuple[Product, ...]]] = [
        *((("exclude", i), match, (spec.grid,)) for i, match in enumerate(spec.exclude)),
        *((("overrides", i, "when"), o.when, spec.products) for i, o in enumerate(spec.overrides)),
    ]
    for at, match, products in rules:
        try:
            for place, why in misfits(match, products, changes):
                yield (*at, *place), why
        except PlugInError as error:
            yield at, str(error)
