import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_cells import failed, latency, make_cell, quality, results_frame

from qb_cluster.contracts.judgement import Judgement
from qb_cluster.report.comparison import compare
from qb_cluster.report.pareto import GROUP, pareto_front


def front(*cells, competes=None, **groups):
    """Whether each of some cells (value, bytes, time) is on the front."""
    frame = pd.DataFrame(cells, columns=["value", "artifact_bytes", "latency_median_ns"])
    frame = frame.astype({"value": "float64"} | dict.fromkeys(frame.columns[1:], "Int64"))
    for name in GROUP:
        frame[name] = groups.get(name, "same")
    who = pd.Series([True] * len(frame) if competes is None else competes, frame.index, bool)
    return pareto_front(frame, who).tolist()


def test_who_is_worse_in_one_and_better_in_none_is_beaten():
    assert front((0.9, 10, 5), (0.8, 10, 5)) == [True, False]
    assert front((0.9, 11, 5), (0.9, 10, 5)) == [False, True]
    assert front((0.9, 10, 5), (0.9, 10, 6)) == [True, False]


def test_who_is_better_in_one_is_not_beaten():
    assert front((0.9, 10, 5), (0.8, 9, 5), (0.7, 11, 4), (0.7, 11, 5)) == [True, True, True, False]


def test_equal_cells_do_not_beat_each_other():
    assert front((0.9, 10, 5), (0.9, 10, 5)) == [True, True]


def test_a_cell_without_a_time_does_not_compete_where_others_have_one():
    assert front((0.9, 10, None), (0.8, 12, 5)) == [False, True]


def test_where_nobody_has_a_time_quality_and_size_count():
    assert front((0.9, 10, None), (0.8, 12, None), (0.7, 9, None)) == [True, False, True]


def test_a_cell_without_a_value_is_never_on_the_front():
    assert front((None, 1, 1), (0.8, 12, 5)) == [False, True]


@pytest.mark.parametrize("name", GROUP)
def test_groups_do_not_compete(name):
    assert front((0.9, 10, 5), (0.8, 12, 6), **{name: ["one", "other"]}) == [True, True]


def test_who_does_not_compete_neither_wins_nor_beats():
    assert front((0.9, 10, 5), (0.8, 12, 6), competes=[False, True]) == [False, True]


def test_nobody_at_all_is_on_no_front():
    assert front() == []
    assert front((0.9, 10, 5), competes=[False]) == [False]


def test_cells_that_are_partial_simulated_or_not_ok_are_not_on_the_front():
    ended = []
    for bits, found in (("w8a8", {}), ("w4a8", {"covered_share": 0.5, "artifact_bytes": 1})):
        cell = make_cell("static", bits)
        ended.append((cell, quality(cell, **found), latency(cell)))
    simulated = make_cell("static", "w3a8", execution="simulated")
    ended.append((simulated, quality(simulated, worse=0, better=9)))
    late = make_cell("static", "w2a8")
    end = failed(late, "timeout", "no end", stage="latency")
    ended.append((late, quality(late, worse=0, better=9, artifact_bytes=1), end))
    cells = compare(results_frame(*ended), Judgement()).set_index("bits")
    assert cells["pareto"].to_dict() == {"w8a8": True, "w4a8": False, "w3a8": False, "w2a8": False}


def test_a_float_baseline_competes_with_what_was_made_of_it():
    baseline, cell = make_cell(None), make_cell()
    ended = [(baseline, quality(baseline), latency(baseline, median_ns=9_000, ratio=1.0))]
    better = quality(cell, worse=0, better=3)
    cells = compare(results_frame(*ended, (cell, better, latency(cell))), Judgement())
    assert dict(zip(cells["scheme"], cells["pareto"], strict=True)) == {
        "float": False,
        "static": True,
    }


FEW = st.integers(0, 3)  # few values: many ties


@given(st.lists(st.tuples(FEW, FEW, st.one_of(FEW, st.none())), max_size=12))
@settings(max_examples=150, deadline=None)
def test_nobody_on_the_front_is_beaten_and_everybody_off_it_is(cells):
    has_times = any(time is not None for *_, time in cells)

    def costs(cell):
        value, size, time = cell
        return (-value, size, (math.inf if time is None else time) if has_times else 0)

    def beats(one, other):
        pairs = list(zip(costs(one), costs(other), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    on = front(*cells)
    known = [cell for cell in cells if not has_times or cell[2] is not None]
    for cell, is_on in zip(cells, on, strict=True):
        is_beaten = any(beats(other, cell) for other in known)
        assert is_on == (cell in known and not is_beaten)
