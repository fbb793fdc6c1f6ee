"""What the inner axes make of a group: the same for all groups that the same rules apply to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product as every
from typing import Final, NamedTuple

from qb_cluster.catalog.model import ModelKind
from qb_cluster.contracts import Bits, Calibration, Execution, Measure, Ref
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.contracts.match import Match
from qb_cluster.plan.identity import Inner, fragment
from qb_cluster.plan.simulator import simulator
from qb_cluster.spec import (
    NamedBackend,
    NamedScheme,
    Override,
    Product,
    Resolution,
    Settings,
    SweepSpec,
    effective,
    resolve,
)

INNER_AXES: Final = frozenset({"scheme", "bits", "execution", "calibration"})


class Baseline(NamedTuple):
    """A float baseline without what its group gives it."""

    inner: Inner
    measure: Measure
    timeout_s: float
    timeout_retries: int


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
    timeout_retries: int
    simulator: Ref | None
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


class _Point(NamedTuple):
    """One combination of the inner axes."""

    scheme: NamedScheme
    bits: Bits
    settings: Settings
    resolution: Resolution


def template(
    spec: SweepSpec,
    backend: NamedBackend,
    kind: ModelKind | None,
    refusal: str | None,
    products: Sequence[Product],
    exclude: Sequence[Match],
    overrides: Sequence[Override],
    *,
    simulates: bool = True,
) -> Template:
    """Work out the cells of a group.

    Args:
        spec: the sweep.
        backend: of the group.
        kind: of the group's model, where it is a file.
        refusal: why the backend can do nothing for this group.
        products: those that the group is part of.
        exclude: those whose outer axes match the group.
        overrides: likewise.
        simulates: whether the group's device has more than a runtime.

    Raises:
        PlugInError: the backend cannot tell what it supports.
    """
    of_group = spec.settings
    for override in overrides:
        if not INNER_AXES & override.when.patterns.keys():
            of_group = override.change.applied_to(of_group)
    rows: dict[Inner, Row] = {}  # two combinations can come to one cell: the first stays
    baselines: dict[Inner, Baseline] = {}
    for product in products:
        for point in _points(spec, product, backend, kind, refusal, overrides, simulates):
            if product is spec.grid and any(_inner_matches(match, point) for match in exclude):
                continue
            measure = replace(
                point.settings.measure, latency=of_group.measure.latency, layers=False
            )
            inner = Inner("null", "null", '"native"', fragment(measure), "null")
            baselines.setdefault(
                inner, Baseline(inner, measure, of_group.timeout_s, of_group.timeout_retries)
            )
            row = _row(spec, backend, kind, point, list(baselines).index(inner))
            rows.setdefault(row.inner, row)
    return Template(tuple(rows.values()), tuple(baselines.values()))


def _points(
    spec: SweepSpec,
    product: Product,
    backend: NamedBackend,
    kind: ModelKind | None,
    refusal: str | None,
    overrides: Sequence[Override],
    simulates: bool,
) -> Iterator[_Point]:
    """Give the inner combinations of a product, with the overrides of a group applied."""

    def point(scheme: NamedScheme, bits: Bits, settings: Settings) -> _Point:
        calibration = settings.calibration and effective(settings.calibration)
        if refusal is None:
            resolution = resolve(backend, scheme, bits, calibration, settings.execution, kind)
        else:
            resolution = Resolution(None, refusal)
        if not simulates and resolution.execution == "simulated":
            reason = f"a device with a runtime alone simulates nothing; {resolution.reason}"
            resolution = Resolution(None, reason)
        return _Point(scheme, bits, settings, resolution)

    for scheme in product.scheme:
        for bits, calibration, requested in every(
            product.bits_of(scheme), product.calibrations_of(scheme), product.execution
        ):
            settings = replace(spec.settings, execution=requested, calibration=calibration)
            found = point(scheme, bits, settings)
            for override in overrides:
                if _inner_matches(override.when, found):
                    found = point(scheme, bits, override.change.applied_to(found.settings))
            yield found


def _inner_matches(match: Match, point: _Point) -> bool:
    return (
        match.accepts("scheme", point.scheme.ref.label)
        and match.accepts("bits", str(point.bits))
        and match.accepts("execution", point.resolution.shown)
        and match.accepts("calibration", calibration_label(point.settings.calibration))
    )


def _row(
    spec: SweepSpec,
    backend: NamedBackend,
    kind: ModelKind | None,
    point: _Point,
    baseline: int,
) -> Row:
    scheme, bits, settings, resolution = point
    calibration = settings.calibration and effective(settings.calibration)
    execution = resolution.execution or settings.execution
    measure = settings.measure
    if execution == "simulated":
        measure = replace(measure, latency=None)  # it is never timed
    if resolution.execution != "simulated":
        measure = replace(measure, layers=False)  # only a simulation can single layers out
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
        settings.timeout_retries,
        simulator(spec, backend, kind, scheme, bits, calibration)
        if resolution.execution == "native"
        else None,
        baseline,
    )
