"""The patterns under a scheme's ``layers``: each has to match a layer of the model."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from qb_cluster.contracts import Bits, Quantization, Scheme
from qb_cluster.errors import PlugInError, UnsupportedError

_NAMED: Final = 12
"""Layers that an error lists; a large model has hundreds."""


def check_layer_patterns(scheme: Scheme, names: Iterable[str], lost: Iterable[str] = ()) -> None:
    """Refuse a pattern that matches nothing: a misspelt one would quantize what it should not.

    Args:
        scheme: its ``layers`` have the patterns.
        names: layers that can be quantized, as the backend calls them; the model itself is "".
        lost: kinds of operations that have lost their names in conversion.

    Raises:
        PlugInError: a pattern matches none of the names.
    """
    known = list(dict.fromkeys(names))
    for pattern, _ in scheme.layers:
        if any(fnmatchcase(name, pattern) for name in known):
            continue
        listed = ", ".join(name or "(the model itself)" for name in known[:_NAMED])
        more = ", …" if len(known) > _NAMED else ""
        nameless = ", ".join(sorted(set(lost)))
        raise PlugInError(
            f"scheme '{scheme.name}': the pattern '{pattern}' under layers matches none of the "
            f"{len(known)} layers that can be quantized ({listed or 'none'}{more}"
            f"{f'; {nameless} lost their names in conversion' if nameless else ''}); "
            "write their names, * stands for any text"
        )


def bits_of(names: Iterable[str], quantization: Quantization) -> Bits | None:
    """Give the bits of a weight that several layers share, or that holds those of several.

    Args:
        names: of these layers.
        quantization: its scheme's ``layers`` say what each gets.

    Returns:
        ``None`` where all stay float.

    Raises:
        UnsupportedError: they are to have different ones.
    """
    known = sorted(set(names))
    asked = {quantization.layer_bits(name) for name in known}
    if len(asked) > 1:
        raise UnsupportedError(
            f"scheme '{quantization.scheme.name}': the layers {', '.join(known)} have one weight "
            "here, and the rules under layers give them different bits; give them the same ones"
        )
    return asked.pop() if asked else quantization.bits
