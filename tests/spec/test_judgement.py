"""The tolerance that a sweep states: which cells it is for, and what is no tolerance."""

import json

import pytest

from qb_cluster.contracts.judgement import Judgement
from qb_cluster.contracts.tolerance import Tolerance
from qb_cluster.plan import expand

CELL = {"model": "net", "scheme": "static", "bits": "w8a8", "backend": "tflite"}


@pytest.mark.parametrize(
    ("text", "margin"),
    [("1 pt", 0.01), ("0.5pt", 0.005), ("2 points", 0.02), ("1 %", 0.008), ("0.03", 0.03)],
)
def test_a_tolerance_is_points_or_percent_of_the_float_value_or_the_metrics_own_unit(text, margin):
    tolerance = Tolerance.parse(text)
    assert tolerance.margin(0.8) == pytest.approx(margin)
    assert Tolerance.parse(str(tolerance)) == tolerance


def test_a_relative_tolerance_of_a_negative_metric_is_positive():
    assert Tolerance(10, "%").margin(-2.0) == pytest.approx(0.2)


def test_without_a_word_accuracy_may_lose_one_point_and_other_metrics_have_no_tolerance(
    load, spec_text
):
    judgement = load(spec_text).judgement
    assert judgement.tolerance("accuracy", CELL) == Tolerance(1, "pt")
    assert judgement.tolerance("rmse", CELL) is None
    assert judgement.adjust == "holm"


def test_overrides_give_models_and_schemes_tolerances_of_their_own_and_later_ones_win(
    load, spec_text
):
    judgement = load(
        f"{spec_text}measure: {{tolerance: 2 pt, adjust: none}}\n"
        "overrides:\n"
        "  - {when: {scheme: static}, set: {measure: {tolerance: 1 %}}}\n"
        "  - {when: {bits: w8*}, set: {measure: {tolerance: null}}}\n"
    ).judgement
    assert judgement.adjust == "none"
    assert judgement.tolerance("accuracy", CELL | {"scheme": "dynamic", "bits": "w4"}) == Tolerance(
        2, "pt"
    )
    assert judgement.tolerance("accuracy", CELL | {"bits": "w4a8"}) == Tolerance(1, "%")
    assert judgement.tolerance("accuracy", CELL) is None


def test_a_judgement_survives_its_json(load, spec_text):
    judgement = load(
        f"{spec_text}measure: {{tolerance: 0.25 pt, metric: {{name: accuracy, label: top-1}}}}\n"
        "overrides: [{when: {scheme: static}, set: {measure: {tolerance: null}}}]\n"
    ).judgement
    assert Judgement.from_json(json.loads(json.dumps(judgement.as_json()))) == judgement
    assert "top-1" in judgement.shares


def test_a_tolerance_changes_no_cell(load, spec_text):
    """Rows stand whatever is made of them."""
    plain = [cell.cell_id for cell in expand(load(spec_text))]
    told = load(
        f"{spec_text}measure: {{tolerance: 3 pt, adjust: none}}\n"
        "overrides: [{when: {scheme: static}, set: {measure: {tolerance: 1 %}}}]\n"
    )
    assert [cell.cell_id for cell in expand(told)] == plain


@pytest.mark.parametrize(
    ("measure", "line"),
    [
        ("tolerance: 1", "1 of what? write 1 pt (percentage points), or 1 % (of the float"),
        ("tolerance: 0.01", "0.01 of what?"),
        ("tolerance: -1 pt", "a tolerance is a positive number, not -1"),
        ("tolerance: 0 pt", "no number of examples can show a loss of exactly 0"),
        ("tolerance: 100 pt", "a tolerance of 100 pt would accept any loss"),
        ("tolerance: 250 %", "would accept any loss"),
        ("tolerance: .inf", "is no finite number"),
        ("tolerance: 1 dB", "'1 dB' is not a tolerance; write 1 pt (percentage points) or 1 %"),
        ("tolerance: 1.2.3 pt", "'1.2.3 pt' is not a tolerance"),
        ("tolerance: true", "true is not a tolerance"),
        ("tolerance: [1 pt]", "is not a tolerance"),
        ("adjust: bonferroni", "holm"),
    ],
)
def test_what_is_no_tolerance_is_refused_with_its_place_and_what_to_write(
    refusal, spec_text, measure, line
):
    (told,) = refusal(f"{spec_text}measure: {{{measure}}}\n")
    assert told.startswith("7:")
    assert line in told


def test_a_number_is_a_tolerance_in_the_unit_of_a_metric_of_your_own(load, spec_text):
    judgement = load(f"{spec_text}measure: {{metric: 'math:hypot', tolerance: 0.5}}\n").judgement
    assert judgement.tolerance("math:hypot", CELL) == Tolerance(0.5)


def test_adjust_is_of_the_whole_sweep(refusal, spec_text):
    (told,) = refusal(
        f"{spec_text}overrides:\n"
        "  - {when: {scheme: static}, set: {measure: {adjust: none}}}\n"
    )
    assert "it counts the cells of the whole sweep" in told
