"""What becomes of each kind of layer on a backend, as the backend says itself."""

from collections.abc import Mapping
from typing import Final

from rich.table import Table
from rich.text import Text

from qb_cluster.contracts import Bits, Calibration, Quantization, Ref, Scheme
from qb_cluster.contracts.coverage import LAYER_KINDS, Handlings
from qb_cluster.spec import NamedBackend, ask_support, named_backend

_NOTHING: Final = "–"
_SCHEMES: Final[Mapping[str, tuple[Scheme, Bits]]] = {
    "none": (Scheme("weight_only"), Bits(8)),
    "dynamic": (Scheme("dynamic", "dynamic"), Bits(8, 8)),
    "static": (Scheme("static", "static"), Bits(8, 8)),
}


def handled_kinds_table(name: str) -> Table | None:
    """Draw kind of layer × scheme for the terminal; ``None`` where a backend does not say.

    Args:
        name: a registered name or an import path.

    Raises:
        PlugInError: the backend cannot be made, or its ``support`` raised.
    """
    backend = named_backend(Ref(name, name))
    handles: Handlings | None = getattr(backend.backend, "handles", None)
    if handles is None:
        return None
    columns = {name: handles[name] for name in _SCHEMES if name in handles}
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{backend.ref.label}, 8 bits, native")
    for activations in columns:
        table.add_column(_SCHEMES[activations][0].name)
    for kind in LAYER_KINDS:
        table.add_row(Text(kind), *(Text(each.get(kind, _NOTHING)) for each in columns.values()))
    table.add_row(Text("activations"), *(Text(_scope(backend, each)) for each in columns))
    return table


def _scope(backend: NamedBackend, activations: str) -> str:
    """Name the activations that are rounded; a dash for none."""
    scheme, bits = _SCHEMES[activations]
    calibration = Calibration() if activations == "static" else None
    return ask_support(backend, Quantization(scheme, bits, "native", calibration)).scope or _NOTHING
