import math
from dataclasses import replace

import numpy as np
import pytest
from stored_cells import BEGIN, failed, finish, latency, make_cell, never_run, quality
from stored_cells import row as row_of

from qb_cluster.contracts import Calibration, Device, FinishedCell
from qb_cluster.store.tables import SCHEMAS

COLUMNS = set(SCHEMAS["results"].names)


def test_a_row_has_every_column_and_says_which_cell_it_is():
    cell = make_cell("static", "w4a8", device=Device("cpu", 2), seed=7)
    row = row_of(finish(cell, quality(cell), latency(cell), attempt=2))
    assert set(row) == COLUMNS
    expected = {
        "cell_id": cell.cell_id,
        "baseline_cell_id": cell.baseline_cell_id,
        "sweep": "digits",
        "model": "digits-cnn",
        "backend": "tflite",
        "device": "cpu",
        "scheme": "static",
        "bits": "w4a8",
        "weight_bits": 4,
        "activation_bits": 8,
        "execution": "native",
        "status": "ok",
        "error": None,
        "confidence": 0.95,
        "threads": 2,
        "calibration_samples": Calibration().samples,
        "calibration_seed": 7,
        "calibration_observer": "minmax",
        "attempt": 2,
        "spec_digest": "spec",
        "env_id": "e" * 16,
        "flips_worse": 4,
        "speedup": 3.2,
    }
    assert {key: row[key] for key in expected} == expected


def test_a_baseline_is_float_with_32_bits_and_float_activations_count_32():
    row = row_of(finish(make_cell(None), quality(make_cell(None))))
    assert (row["scheme"], row["bits"]) == ("float", "f32")
    assert (row["weight_bits"], row["activation_bits"]) == (32, 32)
    assert row["delta"] is None
    cell = make_cell("weight_only", "w4")
    row = row_of(finish(cell, quality(cell)))
    assert (row["weight_bits"], row["activation_bits"]) == (4, 32)
    assert row["calibration_samples"] is None


def test_a_latency_stage_that_fails_decides_the_status_and_leaves_the_quality_numbers():
    cell = make_cell()
    stuck = failed(cell, "timeout", "no end after 600 s", stage="latency")
    row = row_of(finish(cell, quality(cell), stuck))
    assert row["status"] == "timeout"
    assert row["error"] == "latency stage: no end after 600 s"
    assert row["traceback"] == "Traceback: no end after 600 s"
    assert row["value"] == pytest.approx(347 / 360)
    assert row["latency_median_ns"] is None


def test_a_quality_stage_that_fails_keeps_what_was_found_before():
    cell = make_cell()
    late = failed(cell, "not_applied", "still float", values={"artifact_bytes": 40_000})
    row = row_of(finish(cell, late))
    assert (row["status"], row["error"]) == ("not_applied", "still float")
    assert (row["artifact_bytes"], row["value"]) == (40_000, None)


def test_a_row_lasts_from_the_start_of_the_first_stage_to_the_end_of_the_last():
    cell = make_cell()
    row = row_of(finish(cell, quality(cell), latency(cell)))
    assert row["started_at"] == BEGIN
    assert row["finished_at"] == latency(cell).finished_at


def test_a_later_stage_overwrites_a_value_but_not_with_nothing():
    cell = make_cell()
    outcomes = [quality(cell, niceness=15), latency(cell, affinity=None)]
    row = row_of(finish(cell, *outcomes))
    assert row["niceness"] == 0
    assert row["affinity"] == [0]


def test_notes_of_the_plan_and_of_the_stages_are_joined_each_once():
    cell = make_cell(reason="no native kernel")
    outcomes = [quality(cell, notes=["2 of 4 weights stay float"]), latency(cell, notes=None)]
    assert row_of(finish(cell, *outcomes))["notes"] == [
        "no native kernel",
        "2 of 4 weights stay float",
    ]
    assert row_of(finish(make_cell(), quality(make_cell())))["notes"] is None


@pytest.mark.parametrize("name", ["latency_ms", "status", "cell_id", "attempt"])
def test_a_stage_cannot_fill_what_is_no_column_of_its_own(name):
    cell = make_cell()
    with pytest.raises(ValueError, match=f"{cell.cell_id}.*'{name}'"):
        row_of(finish(cell, quality(cell, **{name: 1})))


@pytest.mark.parametrize(
    ("name", "value"),
    [("value", "good"), ("latency_runs", 1.5), ("metric", 3), ("examples", 2**70)],
)
def test_a_value_that_does_not_fit_its_column_is_named(name, value):
    cell = make_cell()
    with pytest.raises(ValueError, match=f"{cell.cell_id}.*'{name}'"):
        row_of(finish(cell, quality(cell, **{name: value})))


def test_numpy_values_become_plain_ones_and_nan_becomes_null():
    cell = make_cell()
    found = quality(
        cell,
        value=np.float32(0.5),
        examples=np.int32(3),
        cosine=math.nan,
        sqnr_db=-math.inf,
    )
    row = row_of(finish(cell, found))
    assert (row["value"], row["examples"]) == (0.5, 3)
    assert type(row["value"]) is float
    assert type(row["examples"]) is int
    assert row["cosine"] is None
    assert row["sqnr_db"] == -math.inf


@pytest.mark.parametrize(
    ("calibration", "percentile"),
    [
        (Calibration(observer="percentile", percentile=99.9), 99.9),
        (Calibration(observer="entropy", percentile=99.9), None),
    ],
)
def test_the_percentile_is_in_the_row_where_the_observer_uses_one(calibration, percentile):
    cell = make_cell("static", "w8a8", calibration=calibration)
    row = row_of(finish(cell, quality(cell)))
    assert row["calibration_observer"] == calibration.observer
    assert row["calibration_percentile"] == percentile


def test_a_row_names_the_simulator_it_was_to_be_held_against():
    cell = make_cell(simulator="pytorch")
    assert row_of(finish(cell, quality(cell)))["simulator"] == "pytorch"
    assert row_of(never_run(make_cell(), "oom", "big"))["simulator"] is None


def test_a_kernel_that_computes_something_else_keeps_both_sqnrs_and_has_no_metric():
    cell = make_cell(simulator="pytorch")
    found = {"sqnr_db": 1.2, "reference_sqnr_db": 37.9, "top1_agreement": 0.1}
    row = row_of(finish(cell, failed(cell, "kernel_mismatch", "garbage", values=found)))
    assert (row["status"], row["value"], row["delta"]) == ("kernel_mismatch", None, None)
    assert {name: row[name] for name in found} == found


def test_a_cell_that_never_ran_has_a_row_with_its_reason_and_without_numbers():
    cell = make_cell("static", "w2a8", execution=None, reason="no 2-bit kernel")
    row = row_of(never_run(cell, "unsupported", "no 2-bit kernel"))
    assert set(row) == COLUMNS
    assert (row["status"], row["error"], row["notes"]) == ("unsupported", "no 2-bit kernel", None)
    assert (row["attempt"], row["started_at"], row["value"]) == (0, None, None)
    assert row["execution"] is None
    quarantined = row_of(
        FinishedCell(
            replace(cell, execution="simulated", reason="caveat"),
            (),
            "crashed",
            "killed its worker twice",
            attempt=2,
            finished_at=BEGIN,
        )
    )
    assert (quarantined["attempt"], quarantined["finished_at"]) == (2, BEGIN)
    assert quarantined["notes"] == ["caveat"]


def test_a_row_says_where_its_last_stage_ran():
    cell = make_cell()
    prepared = replace(quality(cell), environment={"host": "server", "arch": "x86_64"})
    timed = latency(cell, runtime="tflite-runtime 2.14.0", peak_memory_bytes=4096)
    on_board = {"host": "shelf", "arch": "aarch64", "board": "Pi 4"}
    row = row_of(finish(cell, prepared, replace(timed, environment=on_board)))
    assert {name: row[name] for name in on_board} == on_board
    assert row["runtime"] == "tflite-runtime 2.14.0"
    assert (row["accelerator"], row["peak_memory_bytes"]) == (None, 4096)
    row = row_of(finish(cell, prepared, replace(timed, environment={})))
    assert (row["host"], row["board"]) == ("server", None)
    assert row_of(never_run(cell, "oom", "big"))["host"] is None
