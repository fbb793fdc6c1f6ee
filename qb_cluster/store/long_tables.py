"""Outcomes in long form: one row an example, a run of timings, a layer, an environment."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qb_cluster.contracts import Outcome, Predictions
from qb_cluster.store.tables import SCHEMAS

_NO_CLASS = -1


def predictions(outcomes: Sequence[Outcome]) -> pa.Table:
    """Make rows of the table ``predictions``, one an example, in evaluation order."""
    return pa.concat_tables(
        [SCHEMAS["predictions"].empty_table()]
        + [
            _predictions(outcome.cell_id, outcome.predictions)
            for outcome in outcomes
            if outcome.predictions is not None
        ]
    )


def samples(attempts: Sequence[tuple[Outcome, int]]) -> pa.Table:
    """Make rows of the table ``samples``, one a run of timings, from outcomes and attempts."""
    rows = [
        {
            "cell_id": outcome.cell_id,
            "attempt": attempt,
            "block": block.block,
            "position": block.position,
            "arm": block.arm,
            "latency_ns": block.latency_ns,
        }
        for outcome, attempt in attempts
        for block in outcome.samples
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["samples"])


def layers(outcomes: Sequence[Outcome]) -> pa.Table:
    """Make rows of the table ``layers``, one a layer and mode."""
    rows = [
        {"cell_id": outcome.cell_id, **asdict(layer)}
        for outcome in outcomes
        for layer in outcome.layers
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["layers"])


def environment(outcome: Outcome) -> dict[str, Any]:
    """Make the row of the table ``environments`` for where an outcome came from."""
    return {
        "env_id": outcome.env_id,
        "environment_json": json.dumps(outcome.environment, default=str),
    }


def _predictions(cell_id: str, found: Predictions) -> pa.Table:
    return pa.table(
        [
            pa.repeat(cell_id, len(found.example_ids)),
            pa.array(found.example_ids, pa.string()),
            _classes(found.targets),
            _classes(found.predicted),
            pa.array(found.scores, pa.float64(), from_pandas=True),  # NaN is null
        ],
        schema=SCHEMAS["predictions"],
    )


def _classes(indices: NDArray[np.int64]) -> pa.Array:
    return pa.array(indices, pa.int64(), mask=indices == _NO_CLASS)
