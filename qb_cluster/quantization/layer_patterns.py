"""The patterns under a scheme's ``layers``: each has to match a layer of the model."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from qb_cluster.contracts import Scheme
from qb_cluster.errors import PlugInError

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
