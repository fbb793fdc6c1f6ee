"""A validated sweep: values only. What the YAML says, with every name resolved."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from qb_cluster.contracts import Backend, Bits, Calibration, Device, Latency, Measure, Ref, Scheme
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.contracts.judgement import Judgement
from qb_cluster.contracts.match import Axis, Match

Requested = Literal["auto", "native", "simulated"]
"""``auto`` is native where the backend can, else simulated."""

SHOWN_EXECUTIONS: Final = ("native", "simulated", "unsupported")
"""What rules match on the axis ``execution``: what the plan shows, not what was asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class NamedScheme:
    """A scheme and the name it came by."""

    ref: Ref
    scheme: Scheme

    @property
    def is_calibrated(self) -> bool:
        """Whether its cells have a calibration."""
        return self.scheme.activations == "static"


@dataclass(frozen=True, slots=True, eq=False)
class NamedBackend:
    """A backend and the name it came by."""

    ref: Ref
    backend: Backend


Entry = Ref | NamedScheme | NamedBackend | Bits | Device | Requested | Calibration


def label_of(entry: Entry) -> str:
    """Give what rules and tables call an entry of an axis."""
    match entry:
        case Ref(label=label):
            return label
        case NamedScheme(ref=ref) | NamedBackend(ref=ref):
            return ref.label
        case Device():
            return entry.label
        case Calibration():
            return calibration_label(entry)
        case _:
            return str(entry)


def effective(calibration: Calibration) -> Calibration:
    """Forget the percentile of an observer that has no use for it."""
    if calibration.observer == "percentile":
        return calibration
    return replace(calibration, percentile=Calibration().percentile)


@dataclass(frozen=True, slots=True)
class Product:
    """Every combination of its axes that fits together, see ``bits_of`` and ``calibrations_of``.

    Attributes:
        bits: for schemes that take any; may be empty where all schemes have bits of their own.
        calibration: for static schemes; a percentile counts for the observer of that name only.
    """

    model: tuple[Ref, ...]
    dataset: tuple[Ref, ...]
    scheme: tuple[NamedScheme, ...]
    bits: tuple[Bits, ...]
    backend: tuple[NamedBackend, ...]
    device: tuple[Device, ...]
    execution: tuple[Requested, ...]
    calibration: tuple[Calibration, ...]

    def bits_of(self, named: NamedScheme) -> tuple[Bits, ...]:
        """Give the bits that a scheme is combined with: its own, or those listed that it takes."""
        scheme = named.scheme
        if scheme.fixed_bits is not None:
            return (scheme.fixed_bits,)
        return tuple(bits for bits in self.bits if scheme.takes(bits))

    def calibrations_of(self, named: NamedScheme) -> tuple[Calibration | None, ...]:
        """Give the calibrations that a scheme is combined with: none, unless it is static."""
        return self.calibration if named.is_calibrated else (None,)

    def entries(self, axis: Axis) -> tuple[Entry, ...]:
        """Give the entries of an axis by its name."""
        entries: tuple[Entry, ...] = getattr(self, axis)
        return entries

    def labels(self, axis: Axis) -> tuple[str, ...]:
        """Give what rules can match on an axis."""
        match axis:
            case "execution":
                return SHOWN_EXECUTIONS
            case "bits":
                fixed = [s.scheme.fixed_bits for s in self.scheme if s.scheme.fixed_bits]
                return tuple(dict.fromkeys(map(str, [*self.bits, *fixed])))
            case "calibration":
                each = dict.fromkeys(c for s in self.scheme for c in self.calibrations_of(s))
                return tuple(dict.fromkeys(map(calibration_label, each)))
            case _:
                return tuple(label_of(entry) for entry in self.entries(axis))


@dataclass(frozen=True, slots=True)
class Settings:
    """What overrides can change.

    Attributes:
        calibration: ``None`` where the scheme needs none.
    """

    execution: Requested
    calibration: Calibration | None
    measure: Measure
    timeout_s: float
    timeout_retries: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """The settings that an override gives; the others stay as they are.

    Attributes:
        calibration, measure: fields to replace; ``measure`` without ``latency``.
        latency: ``True`` measures it, ``False`` leaves it out, fields measure it and replace.
    """

    execution: Requested | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    measure: Mapping[str, Any] = field(default_factory=dict)
    latency: bool | Mapping[str, Any] | None = None
    timeout_s: float | None = None
    timeout_retries: int | None = None

    def applied_to(self, settings: Settings) -> Settings:
        """Give the settings after this change."""
        latency = settings.measure.latency
        if self.latency is False:
            latency = None
        elif self.latency is True:
            latency = latency or Latency()
        elif self.latency is not None:
            latency = replace(latency or Latency(), **self.latency)
        calibration = settings.calibration
        return Settings(
            execution=self.execution or settings.execution,
            calibration=calibration and replace(calibration, **self.calibration),
            measure=replace(settings.measure, **self.measure, latency=latency),
            timeout_s=settings.timeout_s if self.timeout_s is None else self.timeout_s,
            timeout_retries=settings.timeout_retries
            if self.timeout_retries is None
            else self.timeout_retries,
        )


@dataclass(frozen=True, slots=True)
class Override:
    """Settings of their own for the cells that match."""

    when: Match
    change: Change


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A sweep that can be planned.

    Attributes:
        sweep: its name.
        grid: the product of the axes.
        includes: products whose cells are added, whether excluded from the grid or new.
        exclude: cells of the grid that match any of these are dropped.
        overrides: applied in order, each on what the earlier ones left.
        judgement: how results are judged; it changes no cell.
        max_cells: the most cells a plan may have; ``None`` is any number.
        source: the file.
        text: its content.
        digest: hash of what the file says: comments, layout and order of keys don't count.
    """

    sweep: str
    grid: Product
    includes: tuple[Product, ...]
    exclude: tuple[Match, ...]
    overrides: tuple[Override, ...]
    judgement: Judgement
    measure: Measure
    timeout_s: float
    timeout_retries: int
    max_cells: int | None
    source: Path
    text: str
    digest: str

    @property
    def settings(self) -> Settings:
        """What cells have before any override, but for their calibration."""
        return Settings("auto", None, self.measure, self.timeout_s, self.timeout_retries)

    @property
    def products(self) -> tuple[Product, ...]:
        """The grid, then the includes."""
        return self.grid, *self.includes

    @property
    def backends(self) -> tuple[NamedBackend, ...]:
        """Every backend of the sweep, once."""
        return tuple(dict.fromkeys(b for product in self.products for b in product.backend))

    @property
    def devices(self) -> tuple[Device, ...]:
        """Every device of the sweep, once."""
        return tuple(dict.fromkeys(d for product in self.products for d in product.device))
