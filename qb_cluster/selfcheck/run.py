"""All checks in order."""

from collections.abc import Iterator, Sequence

from qb_cluster.catalog import plugins
from qb_cluster.selfcheck.check import Check
from qb_cluster.selfcheck.measures import check_metrics
from qb_cluster.selfcheck.native import check_backend
from qb_cluster.selfcheck.observing import check_observers
from qb_cluster.selfcheck.quantizers import check_quantizers


def run_selfcheck(backends: Sequence[str] | None) -> Iterator[Check]:
    """Check quantizers, observers and metrics, then the native kernels of backends.

    Args:
        backends: registered names or import paths; ``None`` for all that are registered, and
            an empty sequence for none. Those that are not installed are reported so.

    Raises:
        PlugInError: no backend has such a name.
    """
    names = sorted(plugins.registered("backend")) if backends is None else backends
    for name in names:
        plugins.check("backend", name)
    yield from check_quantizers()
    yield from check_observers()
    yield from check_metrics()
    for name in names:
        yield from check_backend(name)
