import math

import pandas as pd
import pytest
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts import STATUSES
from qb_cluster.report.comparison import COLUMNS, compare
from qb_cluster.store.reading import read_results

BASELINE, CELL = make_cell(None), make_cell("static", "w8a8")


def only_row(path):
    [row] = compare(read_results(path)).to_dict("records")
    return row


def test_there_is_a_row_for_every_quantized_cell_whatever_its_status(store, every_status):
    comparison = compare(read_results(store(*every_status)))
    assert sorted(comparison["status"]) == sorted(STATUSES)
    assert list(comparison.columns) == list(COLUMNS)
    assert "float" not in set(comparison["scheme"])


def test_a_row_holds_the_numbers_of_the_cell_and_their_ratios(store):
    row = only_row(store((CELL, quality(CELL, n=100, right=90, worse=9, better=1), latency(CELL))))
    assert row["delta"] == pytest.approx(-0.08)
    assert (row["flips_worse"], row["flips_better"], row["examples"]) == (9, 1, 100)
    assert row["size_ratio"] == 4.0
    assert row["speedup"] == 3.2
    assert row["quality_verdict"] == "worse"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.2, -0.1, "worse"),
        (0.1, 0.2, "better"),
        (-0.1, 0.1, "undecided"),
        (-0.1, 0.0, "undecided"),
        (0.0, 0.1, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_the_verdict_follows_the_interval_and_without_one_nothing_is_decided(
    store, low, high, verdict
):
    row = only_row(store((CELL, quality(CELL, delta_low=low, delta_high=high))))
    assert row["quality_verdict"] == verdict


def test_a_cell_that_is_not_ok_has_no_verdict_and_keeps_its_numbers(store):
    late = failed(CELL, "timeout", "no end", stage="latency")
    row = only_row(store((CELL, quality(CELL, worse=90, better=0), late)))
    assert pd.isna(row["quality_verdict"])
    assert row["flips_worse"] == 90


def test_what_was_not_measured_stays_null(store):
    simulated = make_cell("static", "w3a8", execution="simulated")
    row = only_row(store((simulated, quality(simulated))))
    for name in ("size_ratio", "speedup", "latency_median_ns", "bits_per_weight", "error"):
        assert pd.isna(row[name]), name


def test_an_artifact_of_no_bytes_has_no_size_ratio(store):
    assert math.isnan(only_row(store((CELL, quality(CELL, artifact_bytes=0))))["size_ratio"])


def test_the_order_is_by_what_cells_are_not_by_who_finished_first(store, every_status):
    results = read_results(store(*every_status))
    one = compare(results)
    other = compare(results.sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(one, other)
    assert one["weight_bits"].is_monotonic_decreasing


def test_a_run_with_baselines_alone_compares_nothing(store):
    comparison = compare(read_results(store((BASELINE, quality(BASELINE)))))
    assert len(comparison) == 0
    assert list(comparison.columns) == list(COLUMNS)
