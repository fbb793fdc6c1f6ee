"""Rules that match nothing: found axis by axis, never by walking the product."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import product as every
from typing import Final

from qb_cluster.catalog.plugins import nearest
from qb_cluster.contracts import Bits, Calibration
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.contracts.match import Axis, Match, pattern_matches
from qb_cluster.spec.document import Location
from qb_cluster.spec.support import kind_of, not_installed, resolve, takes
from qb_cluster.spec.sweep import (
    SHOWN_EXECUTIONS,
    Change,
    NamedScheme,
    Product,
    effective,
    label_of,
)

_LISTED: Final = 8  # labels that an error message spells out
_LISTED_AXES: Final[tuple[Axis, ...]] = (
    "model", "dataset", "scheme", "bits", "backend", "device",
)  # fmt: skip

Fitting = tuple[NamedScheme, Bits, Calibration | None]


def misfits(
    match: Match, products: Sequence[Product], changes: Sequence[Change]
) -> Iterator[tuple[Location, str]]:
    """Tell why a rule can match no cell; nothing when it can.

    Args:
        match: the rule.
        products: where its cells may be.
        changes: what overrides may make of them.

    Yields:
        Where in the rule, and what is wrong there.

    Raises:
        PlugInError: a backend cannot tell what it supports.
    """
    unknown = list(_unknown_labels(match, products, changes))
    if unknown:
        yield from unknown
    elif (why := why_nothing(match, products, changes)) is not None:
        yield (), why


def why_nothing(match: Match, products: Sequence[Product], changes: Sequence[Change]) -> str | None:
    """Tell why no cell has all that a match names at once; ``None`` when one has.

    Models, datasets and devices go with anything. What has to fit is the scheme to the bits and
    the calibration and, where the match names an execution, to the backend.
    """
    why = "it matches nothing: no cell has all of these at once"
    for product in products:
        if not all(
            any(match.accepts(axis, label) for label in product.labels(axis))
            for axis in _LISTED_AXES
        ):
            continue
        fitting = list(_fitting(match, product, changes))
        if not fitting:
            calibrated = " and is calibrated like that" if "calibration" in match.patterns else ""
            why = (
                f"it matches nothing: no scheme that it names takes bits that it names{calibrated}"
            )
            continue
        if "execution" not in match.patterns or _may_run(match, product, fitting, changes):
            return None
        why = f"it matches nothing: no such cell is {' or '.join(match.patterns['execution'])}"
    return why


def _fitting(match: Match, product: Product, changes: Sequence[Change]) -> Iterator[Fitting]:
    """Give the schemes, bits and calibrations that the match names and that go together."""
    calibrated = [
        calibration
        for calibration in _calibrations(product, changes)
        if match.accepts("calibration", label_of(calibration))
    ]
    uncalibrated = [None] if match.accepts("calibration", calibration_label(None)) else []
    for scheme in product.scheme:
        if match.accepts("scheme", label_of(scheme)):
            calibrations = calibrated if scheme.is_calibrated else uncalibrated
            for bits, calibration in every(product.bits_of(scheme), calibrations):
                if match.accepts("bits", label_of(bits)):
                    yield scheme, bits, calibration


def _may_run(
    match: Match, product: Product, fitting: Sequence[Fitting], changes: Sequence[Change]
) -> bool:
    """Tell whether some backend makes of some of these what the match names as execution."""
    kinds = {kind_of(m) for m in product.model if match.accepts("model", label_of(m))}
    overriding = (change.execution for change in changes if change.execution is not None)
    asked = dict.fromkeys((*product.execution, *overriding))
    for backend in product.backend:
        if not match.accepts("backend", label_of(backend)):
            continue
        taken = [kind for kind in kinds if takes(backend, kind)]
        out = not_installed(backend) is not None or len(taken) < len(kinds)
        if out and match.accepts("execution", "unsupported"):
            return True
        # What is installed elsewhere may do more: a rule for that is right here too.
        for (scheme, bits, calibration), execution, kind in every(fitting, asked, taken):
            shown = resolve(backend, scheme, bits, calibration, execution, kind).shown
            if match.accepts("execution", shown):
                return True
    return False


def _calibrations(product: Product, changes: Iterable[Change]) -> Iterator[Calibration]:
    """Give every calibration that a product and any of the changes together can come to."""
    names = [field.name for field in fields(Calibration)]
    values = {
        name: dict.fromkeys(getattr(given, name) for given in product.calibration) for name in names
    }
    for change in changes:
        for name, value in change.calibration.items():
            values[name][value] = None
    seen = set()
    for combination in every(*values.values()):
        calibration = effective(Calibration(*combination))
        if calibration not in seen:
            seen.add(calibration)
            yield calibration


def _unknown_labels(
    match: Match, products: Sequence[Product], changes: Sequence[Change]
) -> Iterator[tuple[Location, str]]:
    for axis, patterns in match.patterns.items():
        labels = list(dict.fromkeys(label for p in products for label in p.labels(axis)))
        if axis == "calibration" and any(change.calibration for change in changes):
            brought = (c for p in products for c in _calibrations(p, changes))
            labels = list(dict.fromkeys([*labels, *map(calibration_label, brought)]))
        for index, pattern in enumerate(patterns):
            if not any(pattern_matches(pattern, label) for label in labels):
                yield (axis, index), f"no {axis} '{pattern}'{_known(axis, pattern, labels)}"


def _known(axis: Axis, pattern: str, labels: list[str]) -> str:
    if axis == "execution":
        return f": a cell is {', '.join(SHOWN_EXECUTIONS[:-1])} or {SHOWN_EXECUTIONS[-1]}"
    hint = nearest(pattern, labels)
    if hint.startswith("; did"):
        return f" in this sweep{hint}"
    more = ", …" if len(labels) > _LISTED else ""
    return f" in this sweep; it has {', '.join(labels[:_LISTED])}{more}"
