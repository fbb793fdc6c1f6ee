"""What a backend makes of a cell: native, simulated, or unsupported and why."""

from dataclasses import dataclass
from functools import lru_cache

from qb_cluster.contracts import Bits, Execution, Quantization, Support
from qb_cluster.errors import PlugInError
from qb_cluster.spec.sweep import NamedBackend, NamedScheme, Requested


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a cell will run.

    Attributes:
        execution: ``None`` when the backend cannot do it.
        reason: why it is unsupported, why it is simulated rather than native, or a caveat.
    """

    execution: Execution | None
    reason: str

    @property
    def shown(self) -> str:
        """Give what the plan shows and rules match."""
        return self.execution or "unsupported"


@lru_cache(maxsize=2**14)
def resolve(
    backend: NamedBackend, scheme: NamedScheme, bits: Bits, requested: Requested
) -> Resolution:
    """Ask a backend's support table. ``auto`` is native where supported, else simulated.

    Raises:
        PlugInError: the backend's ``support`` raised, or gave no ``Support``.
    """
    if requested != "auto":
        support = _ask(backend, Quantization(scheme.scheme, bits, requested))
        return Resolution(requested if support.supported else None, _reason(support))
    native = _ask(backend, Quantization(scheme.scheme, bits, "native"))
    if native.supported:
        return Resolution("native", _reason(native))
    simulated = _ask(backend, Quantization(scheme.scheme, bits, "simulated"))
    if simulated.supported:
        caveat = f"; {simulated.reason}" if simulated.reason else ""
        return Resolution("simulated", f"not native: {_reason(native)}{caveat}")
    return Resolution(None, f"native: {_reason(native)}; simulated: {_reason(simulated)}")


def _ask(backend: NamedBackend, quantization: Quantization) -> Support:
    name = backend.ref.label
    try:
        support = backend.backend.support(quantization)
    except Exception as error:
        raise PlugInError(
            f"backend '{name}' raised {type(error).__name__} when asked for its support of "
            f"{quantization.scheme.name} {quantization.bits} {quantization.execution}: {error}"
        ) from error
    if not isinstance(support, Support):
        raise PlugInError(
            f"backend '{name}': support() gave {type(support).__name__}; "
            "return qb_cluster.contracts.Support"
        )
    return support


def _reason(support: Support) -> str:
    if support.supported:
        return support.reason
    return support.reason or "the backend does not support it and does not say why"
