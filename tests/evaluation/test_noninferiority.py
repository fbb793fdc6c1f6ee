"""The verdict's tests: their error rates, by counting every outcome and by simulation."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from qb_cluster.evaluation.noninferiority import (
    detectable,
    direction,
    examples_for,
    holm,
    implied_error,
    mean_examples_needed,
    mean_p,
    paired_examples_needed,
    paired_p,
)
from qb_cluster.evaluation.paired import proportion_difference

LEVEL = 0.05
SET_ERROR = 1e-4  # of the confidence set for discordant pairs, at that level


def most_likely(losses, gains, n, margin):
    """The score statistic with the rate of gains found by a numerical optimizer."""

    def surprise(rate):
        even = n - losses - gains
        return -(
            losses * math.log(rate + margin)
            + (gains * math.log(rate) if gains else 0)
            + (even * math.log1p(-2 * rate - margin) if even else 0)
        )

    rate = optimize.minimize_scalar(
        surprise,
        bounds=(1e-12, (1 - margin) / 2 - 1e-12),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    return (losses - gains - n * margin) / math.sqrt(n * (2 * rate + margin * (1 - margin)))


def counted_p(losses, gains, n, margin, shown):
    """The same p by adding up every outcome, for each rate of the set: slow, by other means."""
    statistics = {
        (b, c): most_likely(b, c, n, margin) for b in range(n + 1) for c in range(n + 1 - b)
    }
    seen = statistics[losses, gains]
    sign = 1 if shown == "within" else -1
    extreme = [at for at, found in statistics.items() if sign * (found - seen) <= 1e-6]
    interval = stats.binomtest(losses + gains, n).proportion_ci(1 - SET_ERROR, "exact")
    rates = np.linspace(0, (1 - margin) / 2, 2_000)
    discordance = 2 * rates + margin
    is_in = (discordance >= interval.low) & (discordance <= interval.high)
    if shown == "worse":
        is_in |= (discordance >= interval.low) & (2 * rates <= min(interval.high, margin))
    worst = 0.0
    for rate in rates[is_in]:
        chances = [rate + margin, rate, max(0.0, 1 - 2 * rate - margin)]
        each = stats.multinomial.pmf([(b, c, n - b - c) for b, c in extreme], n, chances)
        worst = max(worst, float(np.sum(each)))
    return worst + SET_ERROR


@pytest.mark.parametrize(
    ("losses", "gains", "n", "margin"),
    [(0, 0, 20, 0.1), (1, 2, 20, 0.1), (0, 3, 25, 0.05), (6, 1, 20, 0.1), (9, 2, 24, 0.02)],
)
def test_p_is_what_adding_up_every_outcome_gives(losses, gains, n, margin):
    shown = direction((gains - losses) / n, margin)
    counted = counted_p(losses, gains, n, margin, shown)
    assert paired_p(losses, gains, n, margin, shown) == pytest.approx(counted, abs=1e-4)


def false_rate(n, margin, shown, is_shown=None):
    """The largest chance of a false verdict over all rates of flips, every outcome counted."""
    highest = 0.08
    most = min(n, int(n * highest + 6 * math.sqrt(n * highest)) + 5)

    def holds(losses, gains):
        return paired_p(losses, gains, n, margin, shown) <= LEVEL

    is_shown = is_shown or holds
    limits, limit = [], -1
    for gains in range(most):  # limits rise with the gains: each is near the one before
        if shown == "within":
            while limit < n - gains and is_shown(limit + 1, gains):
                limit += 1
        else:
            limit = max(limit, 0)
            while limit <= n - gains and not is_shown(limit, gains):
                limit += 1
        limits.append(limit)
    each, limits = np.arange(most), np.array(limits)
    worst = 0.0
    for rate in np.concatenate([np.linspace(0, 0.02, 40), np.linspace(0.02, highest, 20)]):
        among = (rate + margin) / (1 - rate)
        tail = (
            np.where(limits < 0, 0, stats.binom.cdf(limits, n - each, among))
            if shown == "within"
            else stats.binom.sf(limits - 1, n - each, among)
        )
        worst = max(worst, float(np.sum(stats.binom.pmf(each, n, rate) * tail)))
    return worst


@pytest.mark.parametrize("shown", ["within", "worse"])
@pytest.mark.parametrize(("n", "margin"), [(50, 0.08), (200, 0.02), (400, 0.01), (797, 0.01)])
def test_a_false_verdict_is_never_more_likely_than_stated_at_the_margin(n, margin, shown):
    rate = false_rate(n, margin, shown)
    assert rate <= LEVEL
    assert rate > LEVEL / 5, "a test that never says anything holds its error rate too"


def test_the_end_of_the_interval_would_show_nearly_twice_as_many_false_verdicts():
    """Why there is a test of its own."""

    def interval_holds(losses, gains):
        return proportion_difference(losses, gains, 400, 1 - 2 * LEVEL)[0] > -0.01

    assert false_rate(400, 0.01, "within", interval_holds) > 1.7 * LEVEL


def verdicts(flips, n, margin, adjust):
    """The verdict of each cell, for flips of shape (cells, 2)."""
    deltas = [(gains - losses) / n for losses, gains in flips]
    shown = [direction(delta, margin) for delta in deltas]
    p = np.array(
        [
            paired_p(int(losses), int(gains), n, margin, which)
            for (losses, gains), which in zip(flips, shown, strict=True)
        ]
    )
    p = holm(p) if adjust else p
    return np.where(p <= LEVEL, shown, "undecided")


@pytest.mark.parametrize("n", [50, 500, 5_000])
@pytest.mark.parametrize("adjust", [False, True])
def test_simulated_sweeps_have_no_more_false_verdicts_than_stated(n, adjust):
    """Fifty cells at either side of the margin and on it, with many flips and with few."""
    random = np.random.default_rng(n)
    margin, cells = max(0.01, 4 / n), 50
    sweeps = 60 if n < 1_000 else 25
    losses_too_large = np.repeat([True, False], cells // 2)  # truly beyond, truly within
    true_loss = np.where(losses_too_large, margin + 1e-9, margin)
    gains = np.tile([0.0, 0.01, 0.03, 0.06, 0.002], cells // 5)
    chances = np.stack([gains + true_loss, gains, 1 - 2 * gains - true_loss], axis=1)
    false = np.zeros((sweeps, cells), dtype=bool)
    for sweep in range(sweeps):
        flips = np.array([random.multinomial(n, chance)[:2] for chance in chances])
        said = verdicts(flips, n, margin, adjust)
        false[sweep] = np.where(losses_too_large, said == "within", said == "worse")
    if adjust:
        families = int(false.any(axis=1).sum())  # one false verdict in 50 is one too many
        assert stats.binomtest(families, sweeps, LEVEL, alternative="greater").pvalue > 1e-3
    else:
        count = int(false.sum())
        assert stats.binomtest(count, false.size, LEVEL, alternative="greater").pvalue > 1e-3
        assert count > 0.1 * LEVEL * false.size


def test_without_holm_fifty_cells_mostly_bring_a_false_verdict():
    """What the adjustment is for."""
    random = np.random.default_rng(1)
    n, margin = 2_000, 0.01
    found = 0
    for _ in range(40):
        flips = random.multinomial(n, [0.03 + margin, 0.03, 1 - 0.06 - margin], size=50)[:, :2]
        found += "within" in verdicts(flips, n, margin, adjust=False)
    assert found > 20


def test_holm_is_the_step_down_procedure():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


@pytest.mark.parametrize(
    ("losses", "gains", "n"), [(8, 2, 797), (5, 5, 400), (1, 0, 250), (40, 30, 797), (19, 3, 797)]
)
def test_so_many_examples_as_are_said_to_be_needed_do_decide(losses, gains, n):
    margin = 0.01
    needed = paired_examples_needed(losses, gains, n, margin, LEVEL)
    grown = [round(count * needed / n) for count in (losses, gains)]
    shown = direction((gains - losses) / n, margin)
    assert paired_p(*grown, needed, margin, shown) == pytest.approx(LEVEL, abs=0.025)


def test_a_loss_of_exactly_the_margin_is_decided_by_no_number_of_examples():
    assert paired_examples_needed(8, 0, 800, 0.01, LEVEL) is None
    assert mean_examples_needed(-0.1, 0.02, 300, 0.1, LEVEL) is None


def test_the_test_of_means_is_that_of_the_t_test():
    random = np.random.default_rng(0)
    changes = random.normal(-0.02, 0.3, size=400)
    error = changes.std(ddof=1) / math.sqrt(400)
    expected = stats.ttest_1samp(changes, -0.05, alternative="greater").pvalue
    assert mean_p(changes.mean(), error, 400, 0.05, "within") == pytest.approx(expected)
    other = stats.ttest_1samp(changes, -0.05, alternative="less").pvalue
    assert mean_p(changes.mean(), error, 400, 0.05, "worse") == pytest.approx(other)


def test_the_error_implied_by_a_bootstrap_interval_is_that_of_the_mean():
    random = np.random.default_rng(3)
    changes = random.normal(0.1, 2.0, size=300)
    interval = stats.bootstrap(
        (changes,), np.mean, n_resamples=4_000, method="percentile", rng=random
    ).confidence_interval
    error = changes.std(ddof=1) / math.sqrt(300)
    assert implied_error(interval.low, interval.high, 0.95, 300) == pytest.approx(error, rel=0.06)


def test_detectable_and_needed_are_one_formula():
    assert detectable(0.02, 797, 0.95) == pytest.approx(2.8016 * math.sqrt(0.02 / 797), rel=1e-4)
    assert examples_for(0.01, 0.01, 0.95) == math.ceil(7.8489 * 0.01 / 0.01**2)
    n = examples_for(0.05, 0.01, 0.9)
    assert detectable(0.05, n, 0.9) <= 0.01 < detectable(0.05, n - 1, 0.9)


def test_what_is_called_detectable_is_found_four_times_in_five():
    random = np.random.default_rng(5)
    n, discordance = 3_000, 0.05
    change = detectable(discordance, n, 0.95)
    worse, better = (discordance + change) / 2, (discordance - change) / 2
    losses, gains, _ = random.multinomial(n, [worse, better, 1 - discordance], size=2_000).T
    error = np.sqrt(losses + gains - (gains - losses) ** 2 / n)
    found = np.mean(np.abs(gains - losses) / error > stats.norm.isf(0.025))
    assert found == pytest.approx(0.8, abs=0.03)
