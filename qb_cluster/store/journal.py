"""The journal: finished quality stages of cells that are not finished, and of baselines.

A quality stage may be minutes of work whose cell still waits for its device to be timed, and a
baseline's is needed by other cells. So its outcome goes to disk as soon as it is there.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qb_cluster.contracts import ArtifactFacts, ArtifactRef, Content, Outcome, QualityResult


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A quality stage that ended ok.

    Attributes:
        outcome: how it ended. Read back, it comes without predictions and layers, which are in
            tables of their own.
        attempt: which attempt it was, from 1.
    """

    outcome: Outcome
    attempt: int


def to_row(entry: JournalEntry) -> dict[str, Any]:
    """Turn an entry into a row of the table ``stages``.

    Raises:
        ValueError: the outcome is not that of a quality stage that ended ok.
    """
    outcome = entry.outcome
    if outcome.stage != "quality" or outcome.status != "ok" or outcome.quality is None:
        raise ValueError(
            f"cell {outcome.cell_id}: only a quality stage that ended ok can be journaled, not "
            f"a {outcome.stage} stage that ended {outcome.status}"
        )
    return {
        "cell_id": outcome.cell_id,
        "stage": outcome.stage,
        "status": outcome.status,
        "attempt": entry.attempt,
        "started_at": outcome.started_at,
        "finished_at": outcome.finished_at,
        "env_id": outcome.env_id,
        "values_json": json.dumps(outcome.values, default=_plain),
        "quality_json": json.dumps(asdict(outcome.quality)),
    }


def from_row(row: dict[str, Any], environment: dict[str, Any]) -> JournalEntry:
    """Turn a row of the table ``stages`` back into an entry.

    Args:
        row: of the table.
        environment: that its ``env_id`` stands for.
    """
    quality = json.loads(row["quality_json"])
    artifact = quality["artifact"]
    outcome = Outcome(
        cell_id=row["cell_id"],
        stage=row["stage"],
        status=row["status"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        values=json.loads(row["values_json"]),
        quality=QualityResult(
            artifact=ArtifactRef(
                **artifact | {"facts": ArtifactFacts.from_plain(artifact["facts"])}
            ),
            outputs_digest=quality["outputs_digest"],
            content=quality["content"] and Content(**quality["content"]),
            first_digest=quality.get("first_digest"),
            doubt=quality.get("doubt"),
        ),
        env_id=row["env_id"],
        environment=environment,
    )
    return JournalEntry(outcome, row["attempt"])


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"a stage's values are numbers, text, lists or null, not {type(value).__name__}"
    )
