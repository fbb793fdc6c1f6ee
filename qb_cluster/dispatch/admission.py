"""What of a plan still has to run, seeing what earlier runs left.

A row stands while the content of what it names stands. What a name stands for is known to a
worker that has loaded it; so where an earlier run has left a baseline, its *content* stage comes
first, and the cells of that baseline wait for it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from qb_cluster.contracts import (
    Cell,
    Content,
    Device,
    FinishedCell,
    Outcome,
    QualityResult,
    Status,
    fate,
)
from qb_cluster.dispatch.events import Action, Finish, Notice
from qb_cluster.dispatch.job import Job

KeyOf = Callable[[Cell, Content, str | None], str]


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier runs left in the folder.

    Attributes:
        finished: status of the cells that have a row, by cell id.
        kept: quality outcomes that were made durable, with their attempt, by cell id.
        keys: content keys of rows, by cell id; a row without one stands.
        key_of: gives the content key that a cell has today, from its baseline's content and,
            for timed cells, the fingerprint of the hardware that times it.
        is_rerun: whether a cell that has a row of some status is to run again nevertheless.
    """

    finished: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, tuple[Outcome, int]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    key_of: KeyOf | None = None
    is_rerun: Callable[[Cell, str], bool] = lambda cell, status: False  # noqa: ARG005


@dataclass(frozen=True, slots=True)
class _NoBaseline:
    """A baseline that ended without a result."""

    status: str
    story: str


class Admission:
    """Turns cells into jobs, or into rows, or lets them wait for their baseline.

    Args:
        past: what earlier runs left.
        queue: takes a job that can run at once.
        hardware: fingerprints of the nodes that serve a device now; none while nobody knows.
        nodes: how many serve it.
    """

    def __init__(
        self,
        past: Past,
        queue: Callable[[Job], None],
        hardware: Callable[[Device], Collection[str]],
        nodes: Callable[[Device], int],
    ) -> None:
        self._past = past
        self._queue = queue
        self._hardware = hardware
        self._nodes = nodes
        self._baselines: dict[str, QualityResult | _NoBaseline] = {}
        self._waiting: dict[str, list[Cell]] = {}  # by the baseline they wait for
        self._noticed: set[str] = set()
        self._unknown: dict[Device, list[Job]] = {}  # content stages, by the device of their cells
        self.waiting = 0

    def admit(self, cell: Cell) -> list[Action]:
        """Take the next cell of the plan, or one that has waited for its baseline."""
        status = self._past.finished.get(cell.cell_id)
        is_rerun = status is not None and self._past.is_rerun(cell, status)
        if cell.execution is None:
            unsupported = Finish(FinishedCell(cell, (), "unsupported", cell.reason))
            return [unsupported] if status is None or is_rerun else []
        if cell.is_baseline:
            return self._admit_baseline(cell, None if is_rerun else status, is_rerun)
        baseline = self._baselines.get(cell.baseline_cell_id)
        if baseline is None:
            self._waiting.setdefault(cell.baseline_cell_id, []).append(cell)
            self.waiting += 1
            return []
        if is_rerun or isinstance(baseline, _NoBaseline):
            return self._run(cell, baseline) if is_rerun or status is None else []
        return self._recall(cell, status, baseline)

    def hardware_known(self) -> None:
        """Go on with what waited for a device to show itself; called when a worker is up."""
        for device in [device for device in self._unknown if self._hardware(device)]:
            jobs = self._unknown.pop(device)
            self.waiting -= len(jobs)
            for job in jobs:
                self._queue(job)

    def unknown(self) -> Counter[Device]:
        """Count what waits for a device to show itself."""
        return Counter({device: len(jobs) for device, jobs in self._unknown.items()})

    def content_known(
        self,
        baseline: Cell,
        content: Content | None,
        error: str | None,
        *,
        has_runtime: bool = False,
    ) -> list[Action]:
        """Take what a content stage found, or a runtime stage after it; ``None`` when it failed.

        Args:
            baseline: whose.
            content: what its names stand for now.
            error: of the stage.
            has_runtime: whether the runtime was asked for.
        """
        kept = self._past.kept[baseline.cell_id]
        before = kept[0].quality.content if kept[0].quality else None
        if before is not None and before.runtime is None:  # of before content had any
            before = replace(before, runtime=kept[0].values.get("runtime"))
        where = f"'{baseline.model.label}' × '{baseline.dataset.label}' on {baseline.backend.label}"
        if content is None or before is None:
            text = f"{where}: whether its rows still hold cannot be checked ({error}); they stay"
            return [Notice(text), *self._keep_baseline(baseline, kept)]
        device, changes = baseline.device, content.changes(before)
        is_open = not (device.prepares or has_runtime)
        if is_open and changes in ([], ["runtime"]):
            self._queue(Job(baseline, "runtime", content=content))
            return []
        if changes == ["runtime"] and self._nodes(device) > 1:
            text = (
                f"{where}: one node of '{device.name}' has {content.runtime or 'no runtime apart'} "
                f"now, and its rows are of {before.runtime or 'none'}; they stay, since other "
                "nodes may still have that. Give unlike nodes devices of their own; after an "
                "upgrade of all, --rerun the cells"
            )
            return [Notice(text), *self._keep_baseline(baseline, kept)]
        if changes:
            what = " and ".join(changes)
            text = f"{where}: {what} changed since its rows were written; its cells run again"
            self._queue(Job.first(baseline))
            self._noticed.add(baseline.cell_id)
            return [Notice(text)]
        return self._keep_baseline(baseline, kept)

    def quality_known(
        self, cell: Cell, outcome: Outcome, attempt: int, baseline: QualityResult | None
    ) -> list[Action]:
        """Go on after a quality stage that ended ok: to latency, or to the end."""
        actions: list[Action] = []
        if cell.is_timed:
            reference = outcome.quality if cell.is_baseline else baseline
            self._queue(Job(cell, "latency", alone=True, baseline=reference, quality=outcome))
        else:
            ended = FinishedCell(cell, (outcome,), *fate(cell, (outcome,)), attempt)
            actions.append(Finish(ended))
        if cell.is_baseline and outcome.quality is not None:
            actions += self._settled(cell, outcome.quality)
        return actions

    def baseline_failed(self, cell: Cell, status: Status, error: str | None) -> list[Action]:
        """End the cells of a baseline that will have no result; nothing for other cells."""
        if not cell.is_baseline:
            return []
        return self._settled(cell, _NoBaseline(status, f"ended {status}: {error}"))

    def _admit_baseline(self, cell: Cell, status: str | None, is_rerun: bool) -> list[Action]:
        kept = None if is_rerun else self._past.kept.get(cell.cell_id)
        if kept is not None and kept[0].quality is not None:
            if kept[0].quality.content is None or self._past.key_of is None:
                return self._keep_baseline(cell, kept)
            self._look_again(Job(cell, "content"))
        elif status is None:
            self._queue(Job.first(cell))
        else:
            story = f"ended {status} in an earlier run; its own row says why"
            return self._settled(cell, _NoBaseline(status, story))
        return []

    def _look_again(self, job: Job) -> None:
        """Queue a content stage: where another node runs it, once the device's hardware is known.

        Whether timings still stand is asked when it has ended, and its end tells nothing of that.
        """
        device = job.cell.device
        if device.prepares or self._hardware(device):
            self._queue(job)
        else:
            self._unknown.setdefault(device, []).append(job)
            self.waiting += 1

    def _keep_baseline(self, cell: Cell, kept: tuple[Outcome, int]) -> list[Action]:
        quality = kept[0].quality
        if quality is None:
            raise ValueError(f"baseline {cell.cell_id}: no quality stage was kept")
        status = self._past.finished.get(cell.cell_id)
        if status is None or not self._stands(cell, quality):
            return self.quality_known(cell, *kept, None)
        return self._settled(cell, quality)

    def _settled(self, cell: Cell, result: QualityResult | _NoBaseline) -> list[Action]:
        self._baselines[cell.cell_id] = result
        waiting = self._waiting.pop(cell.cell_id, [])
        self.waiting -= len(waiting)
        return [action for waited in waiting for action in self.admit(waited)]

    def _recall(self, cell: Cell, status: str | None, baseline: QualityResult) -> list[Action]:
        """Take up what is there of a cell, as far as it still stands."""
        if status is not None and self._stands(cell, baseline):
            return []
        actions: list[Action] = []
        kept = self._past.kept.get(cell.cell_id)
        if kept is not None and not self._quality_stands(cell, kept[0], baseline):
            kept = None
        if status is not None and cell.baseline_cell_id not in self._noticed:
            self._noticed.add(cell.baseline_cell_id)
            why = "code or settings" if kept is None else "the hardware that timed them"
            what = f"'{cell.model.label}' × '{cell.dataset.label}' on {cell.backend.label}"
            text = f"{what}: {why} changed since its rows were written; such cells run again"
            actions.append(Notice(text))
        if kept is not None:
            return actions + self.quality_known(cell, *kept, baseline)
        return actions + self._run(cell, baseline)

    def _run(self, cell: Cell, baseline: QualityResult | _NoBaseline) -> list[Action]:
        if isinstance(baseline, _NoBaseline):
            return [_not_run(cell, baseline)]
        self._queue(Job.first(cell, baseline))
        return []

    def _stands(self, cell: Cell, baseline: QualityResult) -> bool:
        """Tell whether a row is what the cell would give today, as far as anybody can tell."""
        key, key_of = self._past.keys.get(cell.cell_id), self._past.key_of
        if key is None or key_of is None or baseline.content is None:
            return True
        content = baseline.content
        if key_of(cell, content, None) == key:  # not timed, or its latency stage failed
            return True
        hardware = self._hardware(cell.device) if cell.is_timed else ()
        if cell.is_timed and not hardware:
            return True
        return any(key_of(cell, content, one) == key for one in hardware)

    def _quality_stands(self, cell: Cell, outcome: Outcome, baseline: QualityResult) -> bool:
        key, key_of = outcome.values.get("content_key"), self._past.key_of
        if key is None or key_of is None or baseline.content is None:
            return True
        return bool(key_of(cell, baseline.content, None) == key)


def _not_run(cell: Cell, baseline: _NoBaseline) -> Finish:
    # What a backend cannot take as float it does not support quantized either; that is no failure.
    status: Status = "unsupported" if baseline.status == "unsupported" else "failed"
    error = f"not run: its float baseline {cell.baseline_cell_id} {baseline.story}"
    return Finish(FinishedCell(cell, (), status, error))
