"""The loss that a user accepts: ``1 pt``, ``1 %``, or a number in the metric's own unit."""

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

SHARES: Final = frozenset({"accuracy"})
"""Metrics, by what they are registered as, whose value is a share of the examples, 0 to 1."""

Unit = Literal["pt", "%", ""]
"""Percentage points; percent of the float model's value; the metric's own unit."""

_WHOLE: Final = 100.0  # points, or percent
_FORM: Final = re.compile(r"([+-]?[0-9.]+(?:e[+-]?[0-9]+)?) *(pt|pts|points?|%)?", re.IGNORECASE)
_HOW: Final = "write 1 pt (percentage points) or 1 % (of the float model's value)"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much a metric may lose.

    Attributes:
        amount: positive and finite; below 100 where there is a unit.
        unit: of the amount.
    """

    amount: float
    unit: Unit = ""

    def __post_init__(self) -> None:
        """Refuse amounts that are no tolerance.

        Raises:
            ValueError: the amount is not positive and finite, or is the whole of a share.
        """
        if not math.isfinite(self.amount) or self.amount < 0:
            raise ValueError(f"a tolerance is a positive number, not {self.amount:g}; {_HOW}")
        if self.amount == 0:
            raise ValueError(
                "no number of examples can show a loss of exactly 0; give the loss that you accept"
            )
        if self.unit and self.amount >= _WHOLE:
            raise ValueError(f"a tolerance of {self} would accept any loss; {_HOW}")

    @classmethod
    def parse(cls, text: str) -> "Tolerance":
        """Read ``1 pt``, ``0.5 %`` or ``0.02``.

        Raises:
            ValueError: the text has another form, or the amount is out of range.
        """
        match = _FORM.fullmatch(text.strip())
        try:
            amount = float(match[1]) if match else math.nan
        except ValueError:
            amount = math.nan
        if match is None or math.isnan(amount):
            raise ValueError(f"'{text}' is not a tolerance; {_HOW}")
        unit = (match[2] or "").lower()
        return cls(amount, "%" if unit == "%" else "pt" if unit else "")

    def margin(self, baseline_value: float) -> float:
        """Give the accepted loss in the metric's own unit (of a share: 0.01 for ``1 pt``).

        Args:
            baseline_value: the metric of the float model; taken as given, without its error.
        """
        match self.unit:
            case "pt":
                return self.amount / _WHOLE
            case "%":
                return self.amount / _WHOLE * abs(baseline_value)
            case _:
                return self.amount

    def __str__(self) -> str:
        """Write the form that ``parse`` reads."""
        return f"{self.amount:g} {self.unit}".rstrip()


USUAL: Final = Tolerance(1.0, "pt")
"""For metrics in ``SHARES`` where a sweep gives none; other metrics have none then."""
