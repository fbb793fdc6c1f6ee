"""What the inner axes make of a group: the same for all groups that the same rules apply to."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from itertools import product as every
from typing import Final, NamedTuple

from qb_cluster.catalog.plugins import registered
from qb_cluster.contracts import Bits, Calibration, Execution, Measure, Ref
from qb_cluster.plan.identity import Inner, fragment
from qb_cluster.spec import (
    Match,
    NamedBackend,
    NamedScheme,
    Override,
    Product,
    Requested,
    Resolution,
    Settings,
    SweepSpec,
    resolve,
)

INNER_AXES: Final = frozenset({"scheme", "bits", "execution"})


class Baseline(NamedTuple):
    """A float baseline without what its group gives it."""

    inner: Inner
    measure: Measure
    timeout_s: float


class Row(NamedTuple):
    """A cell without what its group gives it."""

    inner: Inner
    scheme: Ref
    bits: Bits
    execution: Execution | None
    reason: str
    calibration: Calibration | None
    measure: Measure
    timeout_s: float
    baseline: int  # index into the baselines of the template


@dataclass(frozen=True, slots=True)
class Template:
    """What all groups have in common that the same rules apply to."""

    rows: tuple[Row, ...]
    baselines: tuple[Baseline, ...]

    @property
    def cells(self) -> int:
        """How many cells a group of this template has."""
        needed = {row.baseline for row in self.rows if row.execution is not None}
        return len(self.rows) + len(needed)


def template(
    spec: SweepSpec,
    backend: NamedBackend,
    products: Sequence[Product],
    exclude: Sequence[Match],
    overrides: Sequence[Override],
) -> Template:
    """Work out the cells of a group.

    Args:
        spec: the sweep.
        backend: of the group.
        products: those that the group is part of.
        exclude: those whose outer axes match the group.
        overrides: likewise.

    Raises:
        PlugInError: the backend cannot tell what it supports.
    """
    of_group = _settings(spec, "auto")
    for override in overrides:
        if not INNER_AXES & override.when.patterns.keys():
            of_group = override.change.applied_to(of_group)
    rows: dict[Inner, Row] = {}  # overrides can make two cells the same: the first stays
    baselines: dict[Inner, Baseline] = {}
    for product in products:
        for scheme, bits, requested in every(product.scheme, product.bits, product.execution):
            if not scheme.scheme.takes(bits):
                continue
            settings, resolution = _final(spec, overrides, backend, scheme, bits, requested)
            if product is spec.grid and any(
                _inner_matches(match, scheme, bits, resolution) for match in exclude
            ):
                continue
            measure = replace(settings.measure, latency=of_group.measure.latency)
            inner = Inner("null", "null", '"native"', fragment(measure), "null")
            baselines.setdefault(inner, Baseline(inner, measure, of_group.timeout_s))
            row = _row(scheme, bits, settings, resolution, list(baselines).index(inner))
            rows.setdefault(row.inner, row)
    return Template(tuple(rows.values()), tuple(baselines.values()))


def _settings(spec: SweepSpec, requested: Requested) -> Settings:
    return Settings(requested, spec.calibration, spec.measure, spec.timeout_s)


def _final(
    spec: SweepSpec,
    overrides: Sequence[Override],
    backend: NamedBackend,
    scheme: NamedScheme,
    bits: Bits,
    requested: Requested,
) -> tuple[Settings, Resolution]:
    """Apply the overrides of a group to one of its cells."""
    settings = _settings(spec, requested)
    resolution = _resolution(backend, scheme, bits, requested)
    for override in overrides:
        if _inner_matches(override.when, scheme, bits, resolution):
            settings = override.change.applied_to(settings)
            resolution = _resolution(backend, scheme, bits, settings.execution)
    return settings, resolution


def _inner_matches(match: Match, scheme: NamedScheme, bits: Bits, resolution: Resolution) -> bool:
    return (
        match.accepts("scheme", scheme.ref.label)
        and match.accepts("bits", str(bits))
        and match.accepts("execution", resolution.shown)
    )


def _resolution(
    backend: NamedBackend, scheme: NamedScheme, bits: Bits, requested: Requested
) -> Resolution:
    for module in backend.backend.requires:
        if not _is_installed(module.partition(".")[0]):
            return Resolution(None, f"module '{module}' is not installed{_remedy(backend)}")
    return resolve(backend, scheme, bits, requested)


@cache
def _is_installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


def _remedy(backend: NamedBackend) -> str:
    """Name the extra that brings what a registered backend needs."""
    entry_point = registered("backend").get(backend.ref.target)
    if entry_point is None or entry_point.dist is None:
        return ""
    return f"; pip install '{entry_point.dist.name}[{backend.backend.name}]'"


def _row(
    scheme: NamedScheme, bits: Bits, settings: Settings, resolution: Resolution, baseline: int
) -> Row:
    calibration = settings.calibration if scheme.scheme.activations == "static" else None
    execution = resolution.execution or settings.execution
    measure = settings.measure
    if execution == "simulated":
        measure = replace(measure, latency=None)  # it is never timed
    inner = Inner(
        fragment(bits),
        fragment(calibration),
        f'"{execution}"',
        fragment(measure),
        fragment(scheme.ref),
    )
    return Row(
        inner,
        scheme.ref,
        bits,
        resolution.execution,
        resolution.reason,
        calibration,
        measure,
        settings.timeout_s,
        baseline,
    )
