import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qb_cluster.evaluation.paired import compare_scores, compare_values, proportion_difference


def arms(both_right, worse, better, both_wrong):
    baseline = [1.0] * both_right + [1.0] * worse + [0.0] * better + [0.0] * both_wrong
    quantized = [1.0] * both_right + [0.0] * worse + [1.0] * better + [0.0] * both_wrong
    return np.array(baseline), np.array(quantized)


def test_flips_are_counted_both_ways_and_delta_is_their_balance():
    difference = compare_scores(*arms(90, 6, 2, 2), confidence=0.95)
    assert (difference.flips_worse, difference.flips_better) == (6, 2)
    assert difference.delta == pytest.approx(-0.04)


@given(st.integers(0, 30), st.integers(0, 30))
def test_p_value_is_exact_mcnemar(worse, better):
    p_value = compare_scores(*arms(10, worse, better, 3), confidence=0.95).p_value
    smaller = stats.binom.cdf(min(worse, better), worse + better, 0.5)
    assert p_value == pytest.approx(min(1.0, 2 * smaller))


def test_no_flips_still_leaves_an_interval_of_honest_width():
    difference = compare_scores(*arms(350, 0, 0, 10), confidence=0.95)
    assert difference.delta == 0
    # The rule of three: nought of n seen still allows about 3/n, here 0.8 points.
    assert difference.low < -0.003
    assert difference.high > 0.003


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for n, p_worse, p_better in [(50, 0.05, 0.01), (400, 0.02, 0.02), (797, 0.01, 0.003)]:
        flips = rng.multinomial(n, [p_worse, p_better, 1 - p_worse - p_better], size=3_000)
        covered = 0
        for worse, better, _ in flips:
            low, high = proportion_difference(int(worse), int(better), n, 0.95)
            covered += low <= p_better - p_worse <= high
        assert covered / len(flips) >= 0.94, (n, p_worse, p_better)


def test_one_example_gives_an_interval_that_admits_it_knows_nothing():
    low, high = proportion_difference(0, 0, 1, 0.95)
    assert low < -0.5
    assert high > 0.5


def test_scores_that_are_not_right_or_wrong_get_a_bootstrap_and_no_mcnemar():
    rng = np.random.default_rng(1)
    baseline = rng.normal(0.8, 0.1, 200)
    quantized = baseline - 0.05 + rng.normal(0, 0.02, 200)
    difference = compare_scores(baseline, quantized, confidence=0.95)
    assert difference.low < difference.delta < difference.high < 0
    assert difference.p_value is None
    assert difference.flips_worse is None


def test_a_metric_of_one_number_resamples_examples_once_for_both_arms():
    rng = np.random.default_rng(2)
    targets = rng.normal(0, 1, 300)
    baseline = targets + rng.normal(0, 0.1, 300)
    shift = 0.01

    def closeness(outputs, targets):
        return -float(np.mean(np.abs(outputs - targets)))

    difference = compare_values(closeness, baseline, baseline + shift, targets, 0.95)
    # Unpaired, the interval would be as wide as the metric's own noise, about ±0.01.
    assert difference.high - difference.low < 0.01
    assert difference.delta == pytest.approx(
        closeness(baseline + shift, targets) - closeness(baseline, targets)
    )
