"""A worker: runs one stage of one cell and gives back a typed outcome, whatever happens."""

import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import Dataset, load_dataset
from qb_cluster.contracts import Backend, Cell, LoadModel, Outcome, Ref, Status, Task
from qb_cluster.errors import CellError
from qb_cluster.nodes import environment
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.latency_stage import run_latency
from qb_cluster.worker.quality_stage import run_quality
from qb_cluster.worker.stage import Loaded, StageResult


class Worker:
    """Keeps what is loaded between stages, so that cells of one model share it.

    Args:
        artifacts: where artifacts and baseline outputs are kept.
    """

    def __init__(self, artifacts: Path) -> None:
        self._artifacts = ArtifactFolder(artifacts)
        self._backends = _Keeper(lambda ref: plugins.make("backend", ref), most=8)
        # One model and one dataset at a time: they may be large, and the scheduler keeps
        # cells of one model together.
        self._models = _Keeper(lambda ref: plugins.make("model", ref), most=1)
        self._datasets = _Keeper(load_dataset, most=1)
        self._environments: dict[str, dict[str, Any]] = {}

    def run(self, task: Task) -> Outcome:
        """Run a stage. Never raises, but for KeyboardInterrupt."""
        started_at = datetime.now(UTC)
        values: dict[str, Any] = {}
        result = StageResult()
        status: Status = "ok"
        error = story = None
        try:
            stage = run_quality if task.stage == "quality" else run_latency
            result = stage(task, self._load(task.cell), self._artifacts, values)
        except KeyboardInterrupt:
            raise
        except BaseException as caught:
            status, error = _status(caught), _describe(caught)
            story = "".join(traceback.format_exception(caught))
        description = self._environment(task.cell.backend)
        return Outcome(
            cell_id=task.cell.cell_id,
            stage=task.stage,
            status=status,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            values=values,
            error=error,
            traceback=story,
            quality=result.quality,
            predictions=result.predictions,
            samples=result.samples,
            layers=result.layers,
            env_id=environment.env_id(description),
            environment=description,
        )

    def _load(self, cell: Cell) -> Loaded:
        backend: Backend = self._backends.get(cell.backend)
        dataset: Dataset = self._datasets.get(cell.dataset)
        model: LoadModel = lambda: self._models.get(cell.model)  # noqa: E731 - loaded when needed
        return Loaded(backend, dataset.evaluation(cell.measure.examples), model)

    def _environment(self, backend: Ref) -> dict[str, Any]:
        if backend.target not in self._environments:
            try:
                distributions = self._backends.get(backend).distributions
            except CellError:  # the outcome says so already
                distributions = ()
            self._environments[backend.target] = environment.describe(distributions)
        return self._environments[backend.target]


class _Keeper:
    """Keeps the last few things made from a ref."""

    def __init__(self, make: Callable[[Ref], Any], most: int) -> None:
        self._make = make
        self._most = most
        self._kept: dict[Ref, Any] = {}

    def get(self, ref: Ref) -> Any:
        if ref in self._kept:
            self._kept[ref] = self._kept.pop(ref)  # now the latest used
            return self._kept[ref]
        while len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]  # make room first: two may not fit
        self._kept[ref] = self._make(ref)
        return self._kept[ref]


def _status(error: BaseException) -> Status:
    cause: BaseException | None = error
    while cause is not None:  # a plug-in's MemoryError arrives wrapped
        if isinstance(cause, MemoryError):
            return "oom"
        cause = cause.__cause__
    if isinstance(error, CellError):
        return error.status  # type: ignore[return-value]  # errors.py names no contract
    return "failed"


def _describe(error: BaseException) -> str:
    """Say what went wrong in a line or two, and where."""
    text = str(error) if isinstance(error, CellError) else f"{type(error).__name__}: {error}"
    origin: BaseException = error.__cause__ or error
    frames = traceback.extract_tb(origin.__traceback__)
    if frames and not (isinstance(error, CellError) and error.__cause__ is None):
        text += f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return text if len(text) <= 500 else text[:499] + "…"
