"""The state of a run: progress, failures and causes, what was reused, and who is running it."""

import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psutil

from qb_cluster.contracts import MEASURED
from qb_cluster.report.reasons import Reason, grouped
from qb_cluster.report.records import records
from qb_cluster.storage import Folder
from qb_cluster.storage.local_folder import LocalFolder
from qb_cluster.storage.local_lock import FILES
from qb_cluster.storage.object_lock import LOCKS
from qb_cluster.store.reading import read_run, read_table

RECENT: Final = timedelta(minutes=5)
_FEWEST: Final = 5  # cells, and
_SHORTEST: Final = timedelta(seconds=20)  # of work, before anything is said about the pace
_HARMLESS: Final = (*MEASURED, "unsupported")
_NAME: Final = ["model", "dataset", "backend", "device", "scheme", "bits"]


@dataclass(frozen=True, slots=True)
class Driver:
    """Who holds a run folder.

    Attributes:
        is_certain: whether the process was seen; elsewhere it may have been killed meanwhile.
    """

    pid: int
    host: str
    since: datetime
    is_certain: bool


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A cell whose attempts never came back; ``story`` says when, where and what was seen."""

    cell_id: str
    name: str
    status: str
    story: str


@dataclass(frozen=True, slots=True)
class Reuse:
    """How often something that cells need was computed, and how often it was there already."""

    what: str
    made: int
    found: int


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run.

    Attributes:
        planned: cells of the spec run last; ``None`` where nobody counted.
        finished: those that have a row. All else here is of these too.
        unplanned: more cells that have a row: earlier specs had them.
        left: planned cells without; ``None`` where nobody counted.
        driver: who is running it now; ``None`` when nobody is.
        cells_per_minute: of the last five minutes, by the clocks of the workers; ``None`` when
            no driver is running, nothing is left, or there is too little to say.
        minutes_left: at this pace; rough, since cells differ.
        statuses: cells by status, the most frequent first.
        reasons: why cells are not ok, alike ones together, the most frequent first.
        given_up: cells that ended badly after attempts that never came back.
        reuse: of what cells need.
        hosts: cells by the host that ran their last stage.
        problems: one sentence for each file that was skipped.
    """

    place: str
    sweep: str
    planned: int | None
    finished: int
    unplanned: int
    left: int | None
    driver: Driver | None
    cells_per_minute: float | None
    minutes_left: float | None
    statuses: dict[str, int]
    reasons: tuple[Reason, ...]
    given_up: tuple[GivenUp, ...]
    reuse: tuple[Reuse, ...]
    hosts: dict[str, int]
    problems: tuple[str, ...]


def driver(folder: Folder) -> Driver | None:
    """Tell who is running a sweep in a folder now; reads notes, and takes no lock.

    Raises:
        OSError: it cannot be read.
    """
    for note in _notes(folder):
        with suppress(ValueError, KeyError, TypeError):  # what is written in this moment
            found = json.loads(note)
            pid, host = int(found["pid"]), str(found["host"])
            since = datetime.fromisoformat(found["since"])
            is_here = host == platform.node()
            if not is_here or _is_alive(pid, since):
                return Driver(pid, host, since, is_here)
    return None


def _notes(folder: Folder) -> Iterator[bytes]:
    is_local = isinstance(folder, LocalFolder)
    names = list(FILES) if is_local else [f"{LOCKS}/{name}" for name in folder.names(LOCKS)]
    for name in names:
        with suppress(FileNotFoundError):
            yield folder.read(name).partition(b"\n")[0]


def _is_alive(pid: int, since: datetime) -> bool:
    """Tell whether a process is there that is not younger than its note."""
    try:
        return psutil.Process(pid).create_time() < since.timestamp() + 1
    except psutil.NoSuchProcess:
        return False


def pace(results: pd.DataFrame, began: datetime, now: datetime) -> float | None:
    """Give the cells per minute of the last minutes; ``None`` when there is too little to say.

    Args:
        results: the table ``results``.
        began: when the driver that is running now began.
        now: the time.
    """
    since = max(began, now - RECENT)
    count = int((results["started_at"].notna() & (results["finished_at"] > since)).sum())
    if count < _FEWEST or now - since < _SHORTEST:
        return None
    return count / ((now - since) / timedelta(minutes=1))


def reasons(results: pd.DataFrame) -> tuple[Reason, ...]:
    """Put cells together that are not ok for the same reason, the most frequent first."""
    bad = results[results["status"] != "ok"]
    return grouped((row["status"], row["error"], _name(row)) for row in records(bad))


def given_up(results: pd.DataFrame) -> tuple[GivenUp, ...]:
    """List the cells that ended badly after attempts that never came back."""
    bad = results[results["story"].notna() & ~results["status"].isin(_HARMLESS)]
    return tuple(
        GivenUp(row["cell_id"], _name(row), row["status"], row["story"]) for row in records(bad)
    )


def _name(row: Mapping[str, Any]) -> str:
    return "/".join(row[part] for part in _NAME)


def reuse(results: pd.DataFrame) -> tuple[Reuse, ...]:
    """Count what cells needed: computed for them, or there already."""
    ran = results[results["started_at"].notna()]
    quantized = ran[ran["cell_id"] != ran["baseline_cell_id"]]
    native = quantized[quantized["simulator"].notna()]

    def count(what: str, name: str, needing: pd.DataFrame) -> Reuse:
        found = sum(name in ready for ready in needing["reused"].dropna())
        return Reuse(what, len(needing) - found, found)

    counts = (
        count("model", "model", ran),
        count("dataset", "dataset", ran),
        count("baseline outputs", "baseline", quantized),
        count("artifact", "artifact", ran),
        count("simulated twin", "twin", native),
    )
    return tuple(one for one in counts if one.made + one.found)


def hosts(results: pd.DataFrame, environments: pd.DataFrame) -> dict[str, int]:
    """Count cells by the host that ran their last stage, the busiest first."""
    names = {
        env_id: json.loads(text).get("host") or "unknown"
        for env_id, text in zip(
            environments["env_id"], environments["environment_json"], strict=True
        )
    }
    ran = results["env_id"].dropna()
    return dict(Counter(names.get(env_id, "unknown") for env_id in ran).most_common())


def read_status(place: str | Path) -> RunStatus:
    """Read the state of a run.

    Args:
        place: its folder, or the URL of an object store.

    Raises:
        RunFolderError: it is no run folder, cannot be read, or a newer QuantBench wrote it.
    """
    run = read_run(place)
    problems = list(run.problems)
    environments = read_table(run.folder, "environments", problems)
    results = run.planned_results
    planned, finished = run.planned_cells, len(results)
    left = None if planned is None else max(0, planned - finished)
    at_work = None
    try:
        at_work = driver(run.folder)
    except OSError as error:
        problems.append(f"who is running it cannot be read: {error.strerror or error}")
    now = datetime.now(UTC)
    per_minute = pace(results, at_work.since, now) if at_work and left else None
    return RunStatus(
        place=str(run.folder),
        sweep=run.sweep,
        planned=planned,
        finished=finished,
        unplanned=len(run.results) - finished,
        left=left,
        driver=at_work,
        cells_per_minute=per_minute,
        minutes_left=None if per_minute is None or left is None else left / per_minute,
        statuses=dict(Counter(results["status"]).most_common()),
        reasons=reasons(results),
        given_up=given_up(results),
        reuse=reuse(results),
        hosts=hosts(results, environments),
        problems=tuple(problems),
    )
