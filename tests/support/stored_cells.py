"""Cells and the outcomes a worker would give for them, for tests of the store and the report."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from qb_cluster.contracts import (
    ArtifactFacts,
    ArtifactRef,
    Bits,
    Calibration,
    Cell,
    Device,
    FinishedCell,
    Latency,
    LayerSensitivity,
    Measure,
    Outcome,
    Predictions,
    QualityResult,
    Ref,
    SampleBlock,
    fate,
)
from qb_cluster.evaluation.paired import proportion_difference
from qb_cluster.store.rows import results_table

BEGIN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ONE_THREAD = Device("cpu", 1)
TIMED = Measure(latency=Latency())
ENVIRONMENT = {"host": "bench", "libraries": {"numpy": "2.4.6"}}


def digest(*parts):
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def make_cell(
    scheme="static",
    bits="w8a8",
    *,
    sweep="digits",
    model="digits-cnn",
    dataset="digits",
    backend="tflite",
    device=ONE_THREAD,
    execution="native",
    reason="",
    seed=0,
    calibration=None,
    simulator=None,
    measure=TIMED,
):
    """A quantized cell; `scheme=None` gives its baseline."""
    place = (model, dataset, backend, device, measure.metric.label)
    baseline_id = digest("baseline", *place)
    if (scheme or "").startswith("static"):
        calibration = calibration or Calibration(seed=seed)
    quantized = (*place, scheme, bits, execution, seed, calibration)
    return Cell(
        cell_id=baseline_id if scheme is None else digest(*quantized),
        sweep=sweep,
        model=Ref(model, model),
        dataset=Ref(dataset, dataset),
        backend=Ref(backend, backend),
        device=device,
        scheme=None if scheme is None else Ref(scheme, scheme.partition("[")[0]),
        bits=None if scheme is None else Bits.parse(bits),
        execution=execution,
        reason=reason,
        calibration=calibration,
        measure=measure,
        timeout_s=600.0,
        baseline_cell_id=baseline_id,
        simulator=None if simulator is None else Ref(simulator, simulator),
    )


def layer(name, mode="only", bits="w8", *, sqnr_db=40.0, parameters=1_000, macs=9_000):
    """What a simulated cell found out about one layer."""
    weights = (sqnr_db - 3, sqnr_db - 2) if mode == "only" else (None, None)
    shape = (10, parameters // 10)
    same = (name, (name,))
    return LayerSensitivity(
        name, parameters, macs, mode, bits, sqnr_db, *weights, "linear", shape, *same
    )


def quality(cell, *, n=360, right=350, worse=4, better=1, started_at=BEGIN, layers=(), **values):
    """A quality stage that ended ok: of `right` examples in float, `worse` flipped, ..."""
    is_baseline = cell.is_baseline
    simulated = cell.execution == "simulated"
    correct = np.arange(n) < (right if is_baseline else right - worse + better)
    facts = ArtifactFacts(10_000, None if simulated else 10_400, 0 if is_baseline else 9_900)
    found = {
        "metric": cell.measure.metric.label,
        "value": float(correct.mean()),
        "examples": n,
        "dataset_examples": 3 * n,
        "batch_size": 64,
        "threads": cell.device.threads,
        "affinity": [0],
        "artifact_bytes": 40_000 if is_baseline else None if simulated else 10_000,
        "bits_per_weight": facts.bits_per_weight,
        "quantized_share": facts.quantized_parameters / facts.parameters,
        "integer_mac_share": None if is_baseline or simulated else 1.0,
        "integer_layer_mac_share": None if is_baseline or simulated else 1.0,
        "activation_scope": None if is_baseline or cell.bits.activation is None else "layers",
        "covered_share": None if is_baseline else 1.0,
        "notes": None,
        "prepare_ns": 123_456_789,
        "open_ns": 456_789,
    }
    if not is_baseline:
        low, high = proportion_difference(worse, better, n, 0.95)
        found |= {
            "baseline_value": right / n,
            "delta": (better - worse) / n,
            "delta_low": low,
            "delta_high": high,
            "p_value": 0.375,
            "flips_worse": worse,
            "flips_better": better,
            "top1_agreement": 0.99,
            "sqnr_db": 37.9,
            "cosine": 0.9999,
            "max_abs_error": 0.25,
            "baseline_artifact_bytes": 40_000,
        }
    return Outcome(
        cell_id=cell.cell_id,
        stage="quality",
        status="ok",
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=2),
        values=found | values,
        quality=QualityResult(
            ArtifactRef(digest(cell.cell_id, "artifact"), "tflite", 9_000, facts),
            digest(cell.cell_id, "outputs") if is_baseline else None,
        ),
        predictions=Predictions(
            example_ids=np.array([f"example-{i}" for i in range(n)]),
            targets=np.arange(n, dtype=np.int64) % 10,
            predicted=np.where(correct, np.arange(n) % 10, 0).astype(np.int64),
            scores=correct.astype(np.float64),
        ),
        layers=tuple(layers),
        env_id="e" * 16,
        environment=ENVIRONMENT,
    )


def latency(cell, *, median_ns=5_000, ratio=3.2, started_at=BEGIN, **values):
    """A latency stage that ended ok: one ABBA block of three runs an arm and position."""
    arms = ("baseline", "quantized", "quantized", "baseline")
    times = {"baseline": round(median_ns * ratio), "quantized": median_ns}
    return Outcome(
        cell_id=cell.cell_id,
        stage="latency",
        status="ok",
        started_at=started_at + timedelta(seconds=10),
        finished_at=started_at + timedelta(seconds=13),
        values={
            "latency_median_ns": median_ns,
            "latency_iqr_ns": median_ns // 50,
            "baseline_latency_median_ns": times["baseline"],
            "baseline_latency_iqr_ns": times["baseline"] // 50,
            "speedup": ratio,
            "speedup_low": ratio * 0.97,
            "speedup_high": ratio * 1.03,
            "speedup_verdict": "faster" if ratio > 1 else "slower",
            "latency_runs": 6,
            "latency_flags": [],
            "first_inference_ns": 3 * median_ns,
            "niceness": 0,
            "foreign_cores": 0.01,
        }
        | values,
        samples=tuple(
            SampleBlock(0, position, arm, np.full(3, times[arm], dtype=np.int64))
            for position, arm in enumerate(arms)
        ),
        env_id="e" * 16,
        environment=ENVIRONMENT,
    )


def failed(cell, status, error, *, stage="quality", **changes):
    """A stage that ended otherwise."""
    outcome = (quality if stage == "quality" else latency)(cell)
    return replace(
        outcome,
        **{
            "status": status,
            "error": error,
            "traceback": f"Traceback: {error}",
            "values": {},
            "quality": None,
            "predictions": None,
            "samples": (),
            "layers": (),
        }
        | changes,
    )


def finish(cell, *outcomes, attempt=1):
    """A cell that has ended with what its last stage says."""
    return FinishedCell(cell, outcomes, *fate(cell, outcomes), attempt)


def never_run(cell, status, error):
    """A cell that has ended without a stage."""
    return FinishedCell(cell, (), status, error)


def row(ended, spec_digest="spec"):
    """The row of the table `results` of a cell that has ended."""
    return results_table([ended], spec_digest).to_pylist()[0]


def results_frame(*ended):
    """The table `results` as a report reads it, of cells with their outcomes, without a folder."""
    rows = [
        finish(cell, *outcomes) if outcomes else never_run(cell, "unsupported", cell.reason)
        for cell, *outcomes in ended
    ]
    nullable = {pa.int64(): pd.Int64Dtype(), pa.int16(): pd.Int16Dtype()}
    return results_table(rows, "spec").to_pandas(types_mapper=nullable.get)
