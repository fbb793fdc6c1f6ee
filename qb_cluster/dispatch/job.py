"""A stage of a cell that waits or runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

from qb_cluster.contracts import (
    PREPARED,
    Cell,
    Content,
    Device,
    FinishedCell,
    Outcome,
    QualityResult,
    Ref,
    Stage,
    Status,
    Task,
)
from qb_cluster.dispatch.events import Cause

RETRIES: Final[Mapping[str, int]] = {"crashed": 1, "oom": 1, "node_lost": 3}
"""How often a stage is tried again after each cause. An error of the user's own: never."""


class Group(NamedTuple):
    """What cells have to share for a worker to go from one to the next for nothing."""

    model: Ref
    dataset: Ref
    backend: Ref
    device: Device


@dataclass(frozen=True, slots=True)
class Job:
    """A stage of a cell that waits or runs.

    Attributes:
        attempt: which one this is, from 1.
        losses: why earlier attempts never came back.
        story: what became of them, a paragraph each.
        alone: has its node to itself: latency, and what ran out of memory.
        solo: has its call to itself: the calls it shared died, and nobody knows of whom.
        baseline: what the baseline's quality stage left; ``None`` in the baseline's own.
        quality: the cell's own quality outcome, before its latency stage.
        prepared: how the prepare stage ended, before a quality stage somewhere else.
        content: what its content stage found, before a runtime stage somewhere else.
    """

    cell: Cell
    stage: Stage
    attempt: int = 1
    losses: tuple[str, ...] = ()
    story: tuple[str, ...] = ()
    alone: bool = False
    solo: bool = False
    baseline: QualityResult | None = None
    quality: Outcome | None = None
    prepared: Outcome | None = None
    content: Content | None = None

    @classmethod
    def first(cls, cell: Cell, baseline: QualityResult | None = None) -> Self:
        """Give the first stage of a cell."""
        return cls(cell, "quality" if cell.device.prepares else "prepare", baseline=baseline)

    @property
    def device(self) -> Device:
        """Where it runs: what has a runtime alone prepares nothing."""
        device = self.cell.device
        return device.host if self.stage in {"content", "prepare"} else device

    @property
    def is_patient(self) -> bool:
        """Whether it may share a call, and be handed out before the call in hand is over."""
        return not (self.alone or self.solo or self.cell.is_baseline)

    def task(self, cores: tuple[int, ...]) -> Task:
        """Make what a worker is given."""
        quality, preparer = None, None
        if self.quality is not None:
            quality, preparer = self.quality.quality, self.quality.environment.get(PREPARED)
        if self.prepared is not None:
            preparer = self.prepared.environment
        before = self.baseline, quality, self.prepared, preparer
        return Task(self.cell, self.stage, self.attempt, cores, *before)

    def then(self, prepared: Outcome) -> Self:
        """Give the quality stage that follows a prepare stage."""
        return replace(
            self, stage="quality", prepared=prepared, attempt=1, losses=(), alone=False, solo=False
        )

    def after(self, loss: str, story: str = "") -> Self | None:
        """Give the next attempt after a loss; ``None`` when there is none left."""
        budget = self.cell.timeout_retries if loss == "timeout" else RETRIES[loss]
        if self.losses.count(loss) >= budget:
            return None
        return replace(
            self,
            attempt=self.attempt + 1,
            losses=(*self.losses, loss),
            story=self._told(story),
            alone=self.alone or loss == "oom",
        )

    def lost(self, cause: Cause, message: str, story: str) -> FinishedCell:
        """Give up: it never came back, too often."""
        count = self.losses.count(cause) + 1
        times = "" if count == 1 else f", {count} times"
        status: Status = "oom" if cause == "oom" else "crashed"
        return self._given_up(status, f"{message} ({self.stage} stage{times})", story)

    def timed_out(self) -> FinishedCell:
        """Give up: it never ended."""
        limit = f"timeout_s = {self.cell.timeout_s:g} s"
        times = "" if self.attempt == 1 else f" (attempt {self.attempt})"
        return self._given_up(
            "timeout", f"the {self.stage} stage ran past {limit} and was killed{times}", ""
        )

    def _given_up(self, status: Status, error: str, story: str) -> FinishedCell:
        outcomes = (self.quality,) if self.quality else ()
        paragraphs = "\n".join(self._told(story)) or None
        return FinishedCell(self.cell, outcomes, status, error, self.attempt, paragraphs)

    def _told(self, story: str) -> tuple[str, ...]:
        if not story:
            return self.story
        return (*self.story, f"{self.stage} stage, attempt {self.attempt}: {story}")
