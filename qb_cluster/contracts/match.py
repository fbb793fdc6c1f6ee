"""A partial match of cells: what rules of a spec name, axis by axis."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

Axis = Literal[
    "model", "dataset", "scheme", "bits", "backend", "device", "execution", "calibration"
]
AXES: Final[tuple[Axis, ...]] = get_args(Axis)


@dataclass(frozen=True, slots=True)
class Match:
    """A partial match: a cell matches when each axis named here has one of its patterns.

    Attributes:
        patterns: labels, or patterns of them with ``*``, ``?`` and ``[…]``, by axis.
    """

    patterns: Mapping[Axis, tuple[str, ...]]

    def accepts(self, axis: Axis, label: str) -> bool:
        """Tell whether a label is among the patterns; any label is, on an axis not named."""
        return axis not in self.patterns or any(
            pattern_matches(pattern, label) for pattern in self.patterns[axis]
        )


def pattern_matches(pattern: str, label: str) -> bool:
    """Tell whether a label is meant; labels hold brackets, so an equal text always matches."""
    return pattern == label or fnmatchcase(label, pattern)
