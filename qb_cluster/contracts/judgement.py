"""How results are judged: the loss that is accepted, and whether verdicts count each other.

It changes no cell: a sweep with another tolerance runs nothing again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

from qb_cluster.contracts.match import AXES, Axis, Match
from qb_cluster.contracts.tolerance import SHARES, USUAL, Tolerance

Adjust = Literal["holm", "none"]


@dataclass(frozen=True, slots=True)
class ToleranceRule:
    """A tolerance for the cells that match; ``None``: they get no verdict."""

    when: Match
    tolerance: Tolerance | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What verdicts are made by.

    Attributes:
        rules: in order: later ones win.
        adjust: ``holm`` adjusts p-values for the number of cells that get a verdict.
        shares: labels of the metrics whose value is a share of the examples.
    """

    rules: tuple[ToleranceRule, ...] = ()
    adjust: Adjust = "holm"
    shares: frozenset[str] = SHARES

    def tolerance(self, metric: str, labels: Mapping[Axis, str]) -> Tolerance | None:
        """Give the tolerance of a cell; ``None`` where there is none.

        Without a rule it is 1 pt for metrics that are shares.

        Args:
            metric: label of its metric.
            labels: its label on every axis.
        """
        found = USUAL if metric in self.shares else None
        for rule in self.rules:
            if all(rule.when.accepts(axis, label) for axis, label in labels.items()):
                found = rule.tolerance
        return found

    def as_json(self) -> dict[str, Any]:
        """Give what ``from_json`` reads."""
        return {
            "rules": [
                {
                    "when": {axis: list(names) for axis, names in rule.when.patterns.items()},
                    "tolerance": None if rule.tolerance is None else str(rule.tolerance),
                }
                for rule in self.rules
            ],
            "adjust": self.adjust,
            "shares": sorted(self.shares),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read what ``as_json`` gives.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        rules = tuple(
            ToleranceRule(
                Match({axis: tuple(rule["when"][axis]) for axis in AXES if axis in rule["when"]}),
                None if rule["tolerance"] is None else Tolerance.parse(rule["tolerance"]),
            )
            for rule in found["rules"]
        )
        if found["adjust"] not in get_args(Adjust):
            raise ValueError(f"'{found['adjust']}' is no adjustment")
        return cls(rules, found["adjust"], frozenset(found["shares"]))


EVERY_CELL: Final = Match({})
