"""What a backend makes of a cell: native, simulated, or unsupported and why."""

import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec

from qb_cluster.catalog.model import ModelKind, file_kind
from qb_cluster.catalog.plugins import is_model_file, registered
from qb_cluster.contracts import Bits, Calibration, Execution, Quantization, Ref, Support
from qb_cluster.errors import PlugInError
from qb_cluster.installation import install_line
from qb_cluster.nodes.node_config import load_node_config
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


def kind_of(model: Ref) -> ModelKind | None:
    """Give the kind of a model file; ``None`` for a callable: that shows when it is called."""
    return file_kind(model.target) if is_model_file("model", model.target) else None


def takes(backend: NamedBackend, kind: ModelKind | None) -> bool:
    """Tell whether a backend takes models of a kind; as long as it is ``None``, it may."""
    return kind is None or kind in backend.backend.takes


def simulates(backend: NamedBackend, kind: ModelKind | None) -> bool:
    """Tell whether a backend simulates models of a kind; for ``None`` it must be all it takes."""
    kinds = _simulated_kinds(backend)
    return set(backend.backend.takes) <= set(kinds) if kind is None else kind in kinds


def not_installed(backend: NamedBackend) -> str | None:
    """Tell what a backend needs and this machine lacks; ``None`` when it can work here.

    Raises:
        NodeConfigError: the file of this machine's owner is wrong.
    """
    if backend.backend.name in _environments():
        return None  # what its own Python has shows there
    for module in backend.backend.requires:
        if not _is_installed(module.partition(".")[0]):
            return f"module '{module}' is not installed{_remedy(backend)}"
    return None


def extra_of(backend: NamedBackend) -> tuple[str, str] | None:
    """Give the distribution and the extra that bring what a registered backend needs."""
    entry_point = registered("backend").get(backend.ref.target)
    if entry_point is None or entry_point.dist is None:
        return None
    return entry_point.dist.name, backend.backend.name


@cache
def on_gpu(backend: NamedBackend) -> NamedBackend | None:
    """Give a backend as it is on a GPU; ``None`` where it computes on none.

    Raises:
        PlugInError: its ``on_gpu`` raised.
    """
    make = getattr(backend.backend, "on_gpu", None)
    if make is None:
        return None
    try:
        return NamedBackend(backend.ref, make())
    except Exception as error:
        raise PlugInError(
            f"backend '{backend.ref.label}' raised {type(error).__name__} when asked for its form "
            f"on a GPU: {error}"
        ) from error


@lru_cache(maxsize=2**14)
def resolve(
    backend: NamedBackend,
    scheme: NamedScheme,
    bits: Bits,
    calibration: Calibration | None,
    requested: Requested,
    kind: ModelKind | None = None,
) -> Resolution:
    """Ask a backend's support table. ``auto`` is native where supported, else simulated.

    Args:
        backend: whom to ask.
        scheme: what for.
        bits: those that the scheme takes.
        calibration: given exactly for static schemes.
        requested: how it should run.
        kind: of the model, where it is a file.

    Raises:
        PlugInError: the backend's ``support`` raised, or gave no ``Support``.
    """

    def ask(execution: Execution) -> Support:
        asked = Quantization(scheme.scheme, bits, execution, calibration)
        return ask_support(backend, asked, kind)

    if requested != "auto":
        support = ask(requested)
        return Resolution(requested if support.supported else None, support.reason)
    native = ask("native")
    if native.supported:
        return Resolution("native", native.reason)
    simulated = ask("simulated")
    if simulated.supported and not simulates(backend, kind):
        kinds = ", ".join(_simulated_kinds(backend))
        simulated = Support(
            supported=False,
            reason=f"{backend.ref.label} simulates models of kind {kinds}, and whether this is one "
            "shows when it is called: `execution: simulated` asks for it",
        )
    if simulated.supported:
        caveat = f"; {simulated.reason}" if simulated.reason else ""
        return Resolution("simulated", f"not native: {native.reason}{caveat}")
    return Resolution(None, f"native: {native.reason}; simulated: {simulated.reason}")


def ask_support(
    backend: NamedBackend, quantization: Quantization, kind: ModelKind | None = None
) -> Support:
    """Ask a backend whether it supports something; whatever it does not support has a reason.

    Args:
        backend: whom to ask.
        quantization: what for.
        kind: of the model, where it is a file; ``None`` asks for models of any kind.

    Raises:
        PlugInError: the backend's ``support`` raised, or gave no ``Support``.
    """
    name = backend.ref.label
    try:
        support = backend.backend.support(quantization)
        refuses = getattr(backend.backend, "refuses", None)
        refusal = "" if kind is None or refuses is None else refuses(kind, quantization)
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
    is_simulated = quantization.execution == "simulated"
    if support.supported and is_simulated and kind is not None and not simulates(backend, kind):
        return Support(supported=False, reason=f"{name} does not simulate models of kind {kind}")
    if support.supported and refusal:
        return Support(supported=False, reason=refusal)
    if not support.supported and not support.reason:
        return Support(
            supported=False, reason="the backend does not support it and does not say why"
        )
    return support


def _simulated_kinds(backend: NamedBackend) -> tuple[str, ...]:
    kinds: tuple[str, ...] = getattr(backend.backend, "simulates", backend.backend.takes)
    return kinds


@cache
def _environments() -> frozenset[str]:
    return frozenset(load_node_config().environments)


@cache
def _is_installed(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


def _remedy(backend: NamedBackend) -> str:
    brought = extra_of(backend)
    return f"; {install_line(brought[1], name=brought[0])}" if brought else ""
