"""What every backend can do here, asked of the backends themselves: scheme × bits × backend."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qb_cluster.catalog.plugins import registered
from qb_cluster.contracts import Bits, Calibration, Execution, Quantization, Ref, Support
from qb_cluster.spec import (
    NamedBackend,
    NamedScheme,
    ask_support,
    named_backend,
    named_scheme,
    not_installed,
)

USUAL_BITS: Final = tuple(
    Bits.parse(text)
    for text in (
        *("w2", "w3", "w4", "w5", "w6", "w7", "w8", "w16"),
        *("w2a8", "w3a8", "w4a8", "w8a8", "w16a8", "w4a16", "w8a16", "w16a16"),
    )
)
"""Weights alone at every width up to 8 and at 16; with activations, the pairs in use."""

_NOTHING: Final = "–"
_SOME_BITS: Final = "such bits"

_Reasons = dict[str, set[str]]
"""Reasons without the bits that they quote, so that one row can stand for several bits, and the
words in which each was told."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One scheme at one bit-width on one backend.

    Attributes:
        backend: its label.
        scheme: how to make it; its label is what tables call it.
        native: whether the backend has kernels, and why not or with what caveat.
        simulated: the same for quantize-dequantize in float.
    """

    backend: str
    scheme: Ref
    bits: Bits
    native: Support
    simulated: Support

    @property
    def execution(self) -> Execution | None:
        """What a cell would be with execution ``auto``."""
        if self.native.supported:
            return "native"
        return "simulated" if self.simulated.supported else None


def support_matrix(
    backend_names: Iterable[str],
    schemes: Iterable[Ref] | None = None,
    bits: Sequence[Bits] = USUAL_BITS,
) -> Iterator[Entry]:
    """Ask backends what they can do on this machine. Imports no framework.

    Args:
        backend_names: registered names or import paths.
        schemes: which schemes; ``None`` is every registered one with its default options.
        bits: which bit-widths; a scheme takes those of its form, a float format its own.

    Yields:
        An entry for each backend, scheme and bit-width; the backends of a scheme and bit-width
        one after another. A backend that is not installed supports nothing, and says what it
        needs.

    Raises:
        PlugInError: a backend or scheme cannot be made, or a backend's ``support`` raised.
    """
    backends = [named_backend(Ref(name, name)) for name in backend_names]
    if schemes is None:
        made = [named_scheme(Ref(name, name)) for name in registered("scheme")]
        made.sort(key=lambda scheme: scheme.scheme.fixed_bits is not None)  # integers first
    else:
        made = [named_scheme(ref) for ref in schemes]
    for scheme in made:
        fixed = scheme.scheme.fixed_bits
        for one in bits if fixed is None else (fixed,):
            if scheme.scheme.takes(one):
                for backend in backends:
                    yield _entry(backend, scheme, one)


def _entry(backend: NamedBackend, scheme: NamedScheme, bits: Bits) -> Entry:
    calibration = Calibration() if scheme.is_calibrated else None
    missing = not_installed(backend)

    def ask(execution: Execution) -> Support:
        if missing is not None:
            return Support(supported=False, reason=missing)
        return ask_support(backend, Quantization(scheme.scheme, bits, execution, calibration))

    return Entry(backend.ref.label, scheme.ref, bits, ask("native"), ask("simulated"))


def support_json_lines(entries: Iterable[Entry]) -> Iterator[str]:
    """Give a JSON object an entry."""
    for entry in entries:
        yield json.dumps(
            {
                "backend": entry.backend,
                "scheme": entry.scheme.label,
                "bits": str(entry.bits),
                "execution": entry.execution,
                "native": asdict(entry.native),
                "simulated": asdict(entry.simulated),
            },
            ensure_ascii=False,
        )


def support_table(entries: Iterable[Entry]) -> Group:
    """Draw a table for the terminal: a column a backend, with numbered reasons below.

    Bit-widths of a scheme that every backend treats alike, for the same reasons, share a row.
    """
    by_row = [
        ((scheme.label, str(bits)), {entry.backend: entry for entry in row})
        for (scheme, bits), row in groupby(entries, lambda entry: (entry.scheme, entry.bits))
    ]
    backends = list(dict.fromkeys(backend for _, row in by_row for backend in row))
    reasons: _Reasons = {}
    merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (scheme, bits), row in by_row:
        texts = tuple(_text(row[backend], reasons) for backend in backends)
        merged.setdefault((scheme, texts), []).append(bits)
    table = Table(box=None, pad_edge=False)
    for heading in ("scheme", "bits", *backends):
        table.add_column(heading, overflow="fold")
    before = None
    for (scheme, texts), widths in merged.items():
        table.add_row(
            Text("" if scheme == before else scheme), Text(" ".join(widths)), *map(Text, texts)
        )
        before = scheme
    notes = Table(box=None, pad_edge=False, show_header=False)
    for number, (general, told) in enumerate(reasons.items(), start=1):
        notes.add_row(Text(f"{number:>2}"), Text(general if len(told) > 1 else told.pop()))
    return Group(table, Text(), notes)


def _text(entry: Entry, reasons: _Reasons) -> str:
    """Write how an entry runs and the numbers of the reasons, which are added to those known."""
    asked = (entry.native,) if entry.native.supported else (entry.native, entry.simulated)
    numbers = []
    for reason in dict.fromkeys(each.reason for each in asked if each.reason):
        general = re.sub(rf"\b{entry.bits}\b", _SOME_BITS, reason)
        reasons.setdefault(general, set()).add(reason)
        numbers.append(1 + list(reasons).index(general))
    listed = f" ({', '.join(map(str, numbers))})" if numbers else ""
    return (entry.execution or _NOTHING) + listed
