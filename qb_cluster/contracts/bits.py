"""Bit-widths as the field writes them: ``w8``, ``w4a8``, ``w4a16``."""

import re
from dataclasses import dataclass
from typing import Final

LOWEST: Final = 2
HIGHEST: Final = 16
_FORM = re.compile(r"w(\d{1,3})(?:a(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits of a weight and, where activations are quantized, of an activation.

    Attributes:
        weight: bits per weight, 2–16.
        activation: bits per activation value, 2–16; ``None`` when activations stay float.
    """

    weight: int
    activation: int | None = None

    def __post_init__(self) -> None:
        """Refuse widths outside 2–16.

        Raises:
            ValueError: a width is out of range.
        """
        for what, bits in (("weights", self.weight), ("activations", self.activation)):
            if bits is not None and not LOWEST <= bits <= HIGHEST:
                raise ValueError(f"{what} take {LOWEST}–{HIGHEST} bits, not {bits}")

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read ``wN`` or ``wNaM``.

        Raises:
            ValueError: the text has another form, or a width is out of range.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"'{text}' is no bit-width; write wN (w4) or wNaM (w4a8)")
        weight, activation = match.groups()
        return cls(int(weight), None if activation is None else int(activation))

    def __str__(self) -> str:
        """Write the form that ``parse`` reads."""
        return f"w{self.weight}" if self.activation is None else f"w{self.weight}a{self.activation}"
