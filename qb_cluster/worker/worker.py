"""A worker: runs one stage of one cell and gives back a typed outcome, whatever happens."""

import traceback
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qb_cluster.catalog import plugins
from qb_cluster.catalog.content import content_of
from qb_cluster.contracts import Backend, Outcome, Ref, Status, Task
from qb_cluster.errors import CellError, DataError, PlugInError
from qb_cluster.nodes import environment
from qb_cluster.storage import Folder
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.keeper import Keeper, load_kept_dataset, load_kept_model
from qb_cluster.worker.latency_stage import run_latency
from qb_cluster.worker.quality_stage import run_quality
from qb_cluster.worker.stage import Loaded, StageResult

REUSED: Final = ("model", "dataset", "baseline", "artifact", "twin")
"""What a stage may find ready, in the order in which a row lists it."""


class Worker:
    """Keeps what is loaded between stages, so that cells of one model share it.

    Args:
        artifacts: where artifacts and baseline outputs are kept: a folder, or its path or URL.
        cache: artifacts of other sweeps.
    """

    def __init__(self, artifacts: Folder | str | Path, cache: ArtifactCache | None = None) -> None:
        self._artifacts = ArtifactFolder(artifacts)
        self._cache = cache or ArtifactCache.of_user()
        self._backend = lru_cache(maxsize=8)(lambda ref: plugins.make("backend", ref))
        self._models = Keeper(load_kept_model)
        self._datasets = Keeper(load_kept_dataset)
        self._environments: dict[str, dict[str, Any]] = {}

    def run(self, task: Task) -> Outcome:
        """Run a stage. Never raises, but for KeyboardInterrupt."""
        started_at = datetime.now(UTC)
        values: dict[str, Any] = {}
        result = StageResult()
        status: Status = "ok"
        error = story = None
        try:
            result = self._run(task, values)
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
            content=result.content,
            predictions=result.predictions,
            samples=result.samples,
            layers=result.layers,
            env_id=environment.env_id(description),
            environment=description,
        )

    def _run(self, task: Task, values: dict[str, Any]) -> StageResult:
        loaded = self._load(task)
        if task.stage == "content":
            return StageResult(content=loaded.content())
        if task.stage == "latency":
            return run_latency(task, loaded, self._artifacts, values)
        try:
            return run_quality(task, loaded, self._artifacts, self._cache, values)
        finally:
            values["reused"] = ",".join(name for name in REUSED if name in loaded.reused) or None

    def _load(self, task: Task) -> Loaded:
        cell = task.cell
        backend: Backend = self._backend(cell.backend)
        reused = {"model"} if cell.model in self._models else set()
        reused |= {"dataset"} if cell.dataset in self._datasets else set()
        dataset = self._datasets.get(cell.dataset)
        before = None if task.baseline is None else task.baseline.content
        if before is not None and before.dataset != dataset.digest:
            raise DataError(
                f"dataset '{cell.dataset.label}' changed while the sweep ran: this worker loads "
                "other examples than the float baseline was run on; see that it gives the same "
                "on every node and at every time, then run the sweep again"
            )

        def model() -> Any:
            kept = self._models.get(cell.model)
            if before is not None and before.model != kept.digest:
                raise PlugInError(
                    f"model '{cell.model.label}' changed while the sweep ran: this worker loads "
                    "other weights or code than the float baseline was made of; seed what is "
                    "random in it or load weights from a file, then run the sweep again"
                )
            return kept.value

        return Loaded(
            backend=backend,
            dataset=dataset.value.evaluation(cell.measure.examples),
            model=model,
            content=lambda: content_of(
                cell, self._models.get(cell.model).digest, dataset.digest, backend
            ),
            reused=reused,
        )

    def _environment(self, backend: Ref) -> dict[str, Any]:
        if backend.target not in self._environments:
            try:
                distributions = self._backend(backend).distributions
            except CellError:  # the outcome says so already
                distributions = ()
            self._environments[backend.target] = environment.describe(distributions)
        return self._environments[backend.target]


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
