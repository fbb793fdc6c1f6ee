"""Who can simulate a native cell, so that its kernels can be told from its scheme."""

from functools import cache

from qb_cluster.catalog.model import ModelKind
from qb_cluster.contracts import Bits, Calibration, Ref
from qb_cluster.errors import PlugInError
from qb_cluster.spec import (
    NamedBackend,
    NamedScheme,
    SweepSpec,
    named_backend,
    not_installed,
    resolve,
    simulates,
)

REFERENCE = "pytorch"
"""The registered backend that simulates for those that cannot, also when a sweep has it not."""


def simulator(
    spec: SweepSpec,
    backend: NamedBackend,
    kind: ModelKind | None,
    scheme: NamedScheme,
    bits: Bits,
    calibration: Calibration | None,
) -> Ref | None:
    """Find a backend that simulates what another does natively.

    Args:
        spec: the sweep, whose backends are asked in order, after the cell's own.
        backend: of the native cell.
        kind: of the model, where it is a file.
        scheme: of the cell.
        bits: of the cell.
        calibration: of the cell.

    Returns:
        The first that is installed, may take the model and simulates the scheme; the reference
        backend comes last, and after it the cell's own where it simulates some kinds of models
        alone. ``None`` when there is none. Where the model's kind is not known, a backend that has
        no kind in common with the cell's cannot take it, and if the one named here turns out not
        to, the cell's own is asked (``worker.reference``).

    Raises:
        PlugInError: a backend cannot tell what it supports.
    """
    kinds = set(backend.backend.takes) if kind is None else {kind}
    first = [one for one in (backend, *spec.backends, *_reference()) if simulates(one, kind)]
    for candidate in dict.fromkeys((*first, backend)):
        if (
            kinds & set(candidate.backend.takes)
            and not_installed(candidate) is None
            and resolve(candidate, scheme, bits, calibration, "simulated", kind).execution
            is not None
        ):
            return candidate.ref
    return None


@cache
def _reference() -> tuple[NamedBackend, ...]:
    try:
        return (named_backend(Ref(REFERENCE, REFERENCE)),)
    except PlugInError:  # not registered here
        return ()
