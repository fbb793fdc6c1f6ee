import math

import pandas as pd
import pytest
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts import STATUSES, Measure, Ref
from qb_cluster.contracts.judgement import Judgement
from qb_cluster.report.comparison import COLUMNS, compare
from qb_cluster.store.reading import read_results

BASELINE, CELL = make_cell(None), make_cell("static", "w8a8")


def compared(path):
    return compare(read_results(path), Judgement())


def only_row(path):
    [row] = compared(path).to_dict("records")
    return row


def test_there_is_a_row_per_cell_whatever_its_status_and_float_rows_too(store, every_status):
    comparison = compared(store(*every_status))
    assert sorted(comparison["status"]) == sorted([*STATUSES, "ok"])
    assert list(comparison.columns) == list(COLUMNS)
    [status] = comparison.loc[comparison["scheme"] == "float", "status"]
    assert status == "ok"


def test_a_row_holds_the_numbers_of_the_cell_and_their_ratios(store):
    row = only_row(store((CELL, quality(CELL, n=100, right=90, worse=9, better=1), latency(CELL))))
    assert (row["flips_worse"], row["flips_better"], row["examples"]) == (9, 1, 100)
    assert row["size_ratio"] == 4.0
    assert row["speedup"] == 3.2


def test_a_share_is_in_percent_and_its_changes_in_points(store):
    row = only_row(store((CELL, quality(CELL, n=100, right=90, worse=9, better=1))))
    assert row["metric_unit"] == "points"
    assert [row[name] for name in ("value", "baseline_value", "delta", "tolerance")] == (
        pytest.approx([82.0, 90.0, -8.0, 1.0])
    )
    assert -20 < row["delta_low"] < -8 < row["delta_high"] < 0


def psnr(name="static", **found):
    cell = make_cell(name, "w8a8", measure=Measure(metric=Ref("psnr", "my.metrics:psnr")))
    flips = {"flips_worse": None, "flips_better": None, "p_value": None}
    return cell, quality(cell, **(flips | {"value": 33.0, "baseline_value": 34.5} | found))


def test_another_metric_stays_in_its_own_unit(store):
    cell, found = psnr(delta=-1.5, delta_low=-2.0, delta_high=-1.0)
    row = only_row(store((cell, found)))
    assert (row["metric_unit"], row["value"], row["delta"]) == ("1", 33.0, -1.5)
    assert pd.isna(row["tolerance"])


def test_a_metric_nobody_registered_as_a_share_is_one_where_it_is_right_or_wrong(store):
    cell = make_cell("static", "w8a8", measure=Measure(metric=Ref("exact", "my.metrics:exact")))
    row = only_row(store((cell, quality(cell))))
    assert (row["metric_unit"], row["value"]) == ("points", pytest.approx(100 * 347 / 360))


def test_a_metric_that_nobody_measured_has_no_unit_to_disagree_with(store):
    cell = make_cell("static", "w8a8", reason="no kernel")
    row = only_row(store((cell,)))
    assert pd.isna(row["value"])
    assert row["status"] == "unsupported"


def test_a_cell_that_is_not_ok_has_no_verdict_and_keeps_its_numbers(store):
    late = failed(CELL, "timeout", "no end", stage="latency")
    row = only_row(store((CELL, quality(CELL, worse=90, better=0), late)))
    assert pd.isna(row["quality_verdict"])
    assert row["no_verdict_reason"] == "timeout"
    assert row["flips_worse"] == 90


def test_what_was_not_measured_stays_null(store):
    simulated = make_cell("static", "w3a8", execution="simulated")
    row = only_row(store((simulated, quality(simulated))))
    for name in ("size_ratio", "speedup", "latency_median_ns", "bits_per_weight", "error"):
        assert pd.isna(row[name]), name
    assert not row["pareto"]


def test_an_artifact_of_no_bytes_has_no_size_ratio(store):
    assert math.isnan(only_row(store((CELL, quality(CELL, artifact_bytes=0))))["size_ratio"])


def test_the_order_is_by_what_cells_are_not_by_who_finished_first(store, every_status):
    results = read_results(store(*every_status))
    one = compare(results, Judgement())
    other = compare(results.sample(frac=1, random_state=3), Judgement())
    pd.testing.assert_frame_equal(one, other)
    assert one.loc[one["scheme"] == "static", "weight_bits"].is_monotonic_decreasing


def test_a_run_with_baselines_alone_has_rows_without_verdicts(store):
    comparison = compared(store((BASELINE, quality(BASELINE), latency(BASELINE))))
    assert list(comparison.columns) == list(COLUMNS)
    [row] = comparison.to_dict("records")
    assert row["scheme"] == "float"
    for name in ("quality_verdict", "no_verdict_reason", "tolerance", "p_verdict", "p_adjusted"):
        assert pd.isna(row[name]), name
    assert row["pareto"]


def test_no_cells_at_all_make_an_empty_comparison(store):
    comparison = compare(read_results(store((CELL, quality(CELL)))).iloc[:0], Judgement())
    assert list(comparison.columns) == list(COLUMNS)
    assert comparison.empty
