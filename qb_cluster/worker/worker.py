"""A worker: runs one stage of one cell and gives back a typed outcome, whatever happens."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qb_cluster.catalog import plugins
from qb_cluster.catalog.arithmetic import arithmetic_digest
from qb_cluster.catalog.content import content_of
from qb_cluster.contracts import PREPARED, Backend, Outcome, SshBoard, Status, Task
from qb_cluster.errors import (
    BoardCrashedError,
    BoardError,
    BoardLostError,
    BoardUnreachableError,
    CellError,
    DataError,
    PlugInError,
)
from qb_cluster.nodes import environment
from qb_cluster.nodes.node_config import load_node_config
from qb_cluster.storage import Folder, open_folder
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.artifact_folder import ArtifactFolder
from qb_cluster.worker.interpreter import Interpreter
from qb_cluster.worker.keeper import Keeper, load_kept_dataset, load_kept_model
from qb_cluster.worker.latency_stage import run_latency
from qb_cluster.worker.prepare_stage import run_prepare
from qb_cluster.worker.quality_stage import run_quality
from qb_cluster.worker.site import Elsewhere, Here, Owner, Site, runtime_of
from qb_cluster.worker.stage import Loaded, StageResult

REUSED: Final = ("model", "dataset", "baseline", "artifact", "twin")
"""What a stage may find ready, in the order in which a row lists it."""
NOBODY: Final = Owner("", "")


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a board says of itself when it is taken.

    Attributes:
        fingerprint: see ``nodes.environment``.
        holder: who has it, where that is somebody else; all else is empty then.
    """

    host: str
    cores: tuple[int, ...]
    fingerprint: str
    holder: str | None = None


class Worker:
    """Keeps what is loaded between stages, so that cells of one model share it.

    Args:
        artifacts: where artifacts and baseline outputs are kept: a folder, or its path or URL.
        cache: artifacts of other sweeps.
        board: a board on which artifacts are run, rather than here.
        owner: whose it is meanwhile.
        pythons: interpreters of this machine that backends have to themselves, by the backend's
            name; ``None`` is what the owner of this machine says.

    Raises:
        NodeConfigError: the file of this machine's owner is wrong.
    """

    def __init__(
        self,
        artifacts: Folder | str | Path,
        cache: ArtifactCache | None = None,
        *,
        board: SshBoard | None = None,
        owner: Owner = NOBODY,
        pythons: Mapping[str, Path] | None = None,
    ) -> None:
        arithmetic_digest()  # of what this process runs, before anybody edits it: it is remembered
        if pythons is None:
            pythons = load_node_config().environments if board is None else {}
        folder = open_folder(artifacts) if isinstance(artifacts, str | Path) else artifacts
        self._artifacts = ArtifactFolder(folder)
        self._cache = cache or ArtifactCache.of_user()
        self._made = lru_cache(maxsize=8)(lambda ref: plugins.make("backend", ref))
        self._made_for_gpu = lru_cache(maxsize=8)(lambda ref: self._made(ref).on_gpu())
        self._models = Keeper(load_kept_model)
        self._datasets = Keeper(load_kept_dataset)
        self._here = Here()
        self._at_gpu = Here(gpus=1)
        self._board = None if board is None else Elsewhere(board, owner)
        self._pythons = {name: Elsewhere(path, owner) for name, path in pythons.items()}
        self._workers = {name: Interpreter(path, folder.place) for name, path in pythons.items()}

    def arrive(self, runtime: str) -> Arrival:
        """Take the board, unless others have it, and say what it is.

        Args:
            runtime: the module for boards that it starts with.

        Raises:
            ValueError: this worker runs artifacts itself.
            BoardError, BoardLostError, BoardCrashedError: see ``boards.board``.
        """
        if self._board is None:
            raise ValueError("this worker has no board")
        if (holder := self._board.arrive(runtime)) is not None:
            return Arrival("", (), "", holder)
        machine = self._board.facts["machine"]
        cores = tuple(range(machine["cores"] or 1))
        return Arrival(machine["host"], cores, environment.fingerprint_of(machine))

    def leave(self) -> None:
        """Give the board back; whoever runs here ends its agent by itself when it is killed."""
        for site in (self._board, *self._pythons.values(), *self._workers.values()):
            if site is not None:
                site.close()

    def run(self, task: Task) -> Outcome:
        """Run a stage.

        Raises:
            KeyboardInterrupt: it was interrupted.
            BoardLostError, BoardCrashedError: of the board. All else is in the outcome.
        """
        started_at = datetime.now(UTC)
        values: dict[str, Any] = {}
        result = StageResult()
        status: Status = "ok"
        error = story = None
        try:
            if (worker := self._worker_elsewhere(task)) is not None:
                return worker.run(task)
            result = self._run(task, values)
        except (KeyboardInterrupt, BoardLostError, BoardCrashedError):
            raise
        except BoardUnreachableError as caught:
            raise BoardLostError(str(caught)) from caught
        except BaseException as caught:
            status, error = _status(caught), _describe(caught)
            story = "".join(traceback.format_exception(caught))
        description = self._environment(task)
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
        site = self._site(task)
        if task.stage == "runtime":
            values["runtime"] = runtime_of(task.cell, self._backend(task), site)
            return StageResult()
        loaded = self._load(task)
        if task.stage == "content":
            runtime = site.runtime(loaded.backend)
            return StageResult(content=replace(loaded.content(), runtime=runtime))
        values["accelerator"] = site.accelerator
        if task.stage == "latency":
            return run_latency(task, loaded, self._artifacts, site, values)
        try:
            if task.stage == "prepare":
                return run_prepare(task, loaded, self._artifacts, self._cache, values)
            return run_quality(task, loaded, self._artifacts, self._cache, site, values)
        finally:
            values["reused"] = [name for name in REUSED if name in loaded.reused] or None

    def _load(self, task: Task) -> Loaded:
        cell = task.cell
        backend = self._backend(task)
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

    def _worker_elsewhere(self, task: Task) -> Interpreter | None:
        """Give the worker that does all of a task, where its backend has one to itself."""
        if not self._workers:
            return None
        try:
            worker = self._workers.get(self._made(task.cell.backend).name)
        except CellError:  # whoever runs the task says so
            return None
        return worker if worker is not None and worker.has_quantbench else None

    def _backend(self, task: Task) -> Backend:
        """Give the backend of a task, for the GPU where it has one."""
        make = self._made_for_gpu if task.cell.device.gpus else self._made
        backend: Backend = make(task.cell.backend)
        return backend

    def _site(self, task: Task) -> Site:
        """Give the place that runs the task's artifact."""
        if task.cell.device.gpus:
            return self._at_gpu
        is_on_host = task.stage in {"content", "prepare"} and not task.cell.device.prepares
        if is_on_host or task.cell.execution == "simulated":
            return self._here
        if self._board is not None:
            return self._board
        return self._pythons.get(self._backend(task).name, self._here)

    def _environment(self, task: Task) -> dict[str, Any]:
        """Describe where the task ran, as far as that is known by now, and what prepared it."""
        made_in = {} if task.preparer is None else {PREPARED: dict(task.preparer)}
        try:
            return self._site(task).describe(self._backend(task)) | made_in
        except CellError:  # the outcome says so already
            return environment.describe(())
        except BoardError:
            return {}


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
