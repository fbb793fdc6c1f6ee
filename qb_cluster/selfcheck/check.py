"""One law held against one figure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """What a law demands of something, and what it gave.

    Attributes:
        subject: what is checked: a quantizer, observer, metric, or a backend with a scheme.
        law: what it is held against, with its unit, e.g. "Max 1960, SQNR dB".
        expected: the law's figure; ``None`` where nothing could be checked, and ``note`` says why.
        got: what came out; NaN when an error did.
        tolerance: how far ``got`` may be from ``expected``, in the same unit.
        note: where the tolerance comes from, the error, or why there is no figure.
    """

    subject: str
    law: str
    expected: float | None
    got: float | None
    tolerance: float | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the law holds; also where there was nothing to hold it against."""
        if self.expected is None:
            return True
        if self.got is None or self.tolerance is None:
            return False
        return abs(self.got - self.expected) <= self.tolerance
