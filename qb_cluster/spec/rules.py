"""Rules that match nothing: found axis by axis, never by walking the product."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product as every

from qb_cluster.catalog.plugins import nearest
from qb_cluster.spec.document import Location
from qb_cluster.spec.support import resolve
from qb_cluster.spec.sweep import (
    AXES,
    SHOWN_EXECUTIONS,
    Axis,
    Match,
    Product,
    Requested,
    label_of,
    pattern_matches,
)

_LISTED = 8  # labels that an error message spells out


def misfits(
    match: Match, products: Sequence[Product], requested: Iterable[Requested]
) -> Iterator[tuple[Location, str]]:
    """Tell why a rule can match no cell; nothing when it can.

    Args:
        match: the rule.
        products: where its cells may be.
        requested: executions that overrides may ask for, besides those of the products.

    Yields:
        Where in the rule, and what is wrong there.

    Raises:
        PlugInError: a backend cannot tell what it supports.
    """
    unknown = list(_unknown_labels(match, products))
    if unknown:
        yield from unknown
    elif (why := why_nothing(match, products, requested)) is not None:
        yield (), why


def why_nothing(
    match: Match, products: Sequence[Product], requested: Iterable[Requested]
) -> str | None:
    """Tell why no cell has all that a match names at once; ``None`` when one has.

    Models, datasets and devices go with anything. What has to fit is the scheme to the bits
    and, where the match names an execution, to the backend.
    """
    why = "it matches nothing: no cell has all of these at once"
    for product in products:
        chosen = {
            axis: [e for e in product.entries(axis) if match.accepts(axis, label_of(e))]
            for axis in AXES
            if axis != "execution"
        }
        if not all(chosen.values()):
            continue
        pairs = [
            (scheme, bits)
            for scheme in product.scheme
            if match.accepts("scheme", label_of(scheme))
            for bits in product.bits
            if match.accepts("bits", label_of(bits)) and scheme.scheme.takes(bits)
        ]
        if not pairs:
            why = "it matches nothing: no scheme that it names takes bits that it names"
            continue
        if "execution" not in match.patterns:
            return None
        backends = [b for b in product.backend if match.accepts("backend", label_of(b))]
        asked = dict.fromkeys((*product.execution, *requested))
        for backend, (scheme, bits), execution in every(backends, pairs, asked):
            if match.accepts("execution", resolve(backend, scheme, bits, execution).shown):
                return None
        why = f"it matches nothing: no such cell is {' or '.join(match.patterns['execution'])}"
    return why


def _unknown_labels(match: Match, products: Sequence[Product]) -> Iterator[tuple[Location, str]]:
    for axis, patterns in match.patterns.items():
        labels = list(dict.fromkeys(label for p in products for label in p.labels(axis)))
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
