"""The protocol under a clock that the test owns: nothing here depends on this machine's mood."""

import numpy as np
import pytest

from qb_cluster.contracts import Latency, SampleBlock
from qb_cluster.evaluation.latency import LatencyResult, measure, speedup, typical

SETTINGS = Latency(warmup_s=0.01, min_runs=50, min_s=0.05)


class Machine:
    """A clock that advances by what each run costs, with noise and a slow drift."""

    def __init__(self, seed, noise=0.05, drift=0.0):
        self.rng = np.random.default_rng(seed)
        self.time_ns = 0
        self.noise = noise
        self.drift = drift

    def clock(self):
        return self.time_ns

    def runs_in(self, nanoseconds):
        def run():
            slowdown = 1 + self.drift * self.time_ns / 1e9
            jitter = self.rng.lognormal(0, self.noise)
            self.time_ns += round(nanoseconds * slowdown * jitter)

        return run


def timed(machine, baseline_ns, quantized_ns, settings=SETTINGS):
    return measure(
        machine.runs_in(baseline_ns), machine.runs_in(quantized_ns), settings, machine.clock
    )


def test_a_against_a_is_called_different_no_more_often_than_the_error_rate_allows():
    verdicts = [
        speedup(timed(Machine(seed), 100_000, 100_000), 0.95).verdict for seed in range(200)
    ]
    wrong = sum(verdict in {"faster", "slower"} for verdict in verdicts)
    assert wrong / len(verdicts) <= 0.05


def test_a_injected_slow_down_of_five_percent_is_found():
    verdicts = [speedup(timed(Machine(seed), 100_000, 105_000), 0.95).verdict for seed in range(50)]
    assert verdicts.count("slower") >= 48


def test_a_drift_of_the_machine_does_not_become_a_difference():
    results = [
        speedup(timed(Machine(seed, drift=2.0), 100_000, 100_000), 0.95) for seed in range(50)
    ]
    assert np.mean([result.ratio for result in results]) == pytest.approx(1, abs=0.005)


def test_each_arm_gets_at_least_its_runs_and_seconds():
    result = timed(Machine(0), 20_000, 400_000)
    for arm in ("baseline", "quantized"):
        samples = result.samples(arm)
        assert len(samples) >= SETTINGS.min_runs
        assert samples.sum() >= 0.9 * SETTINGS.min_s * 1e9


def test_blocks_are_abba_or_baab_and_both_occur():
    result = timed(Machine(0), 100_000, 100_000)
    orders = {}
    for block in result.blocks:
        orders.setdefault(block.block, []).append(block.arm[0])
    assert {"".join(order) for order in orders.values()} == {"bqqb", "qbbq"}


def test_a_slow_model_stops_at_the_cap_and_says_so():
    settings = Latency(warmup_s=0, min_runs=50, min_s=1, cap_s=30)
    machine = Machine(0)
    result = timed(machine, 2_000_000_000, 2_000_000_000, settings)
    assert result.capped
    assert machine.time_ns < 45e9


def test_the_speedup_is_the_ratio_of_the_costs():
    result = speedup(timed(Machine(0), 300_000, 100_000), 0.95)
    assert result.ratio == pytest.approx(3, rel=0.02)
    assert result.low < result.ratio < result.high
    assert result.verdict == "faster"


def test_the_times_of_both_arms_divide_to_the_speedup():
    """One estimator for both: a reader who divides finds no other number."""
    result = timed(Machine(3, noise=0.4, drift=1.5), 310_000, 100_000)
    (floats, _), (own, _) = typical(result, "baseline"), typical(result, "quantized")
    assert floats / own == pytest.approx(speedup(result, 0.95).ratio, rel=1e-4)
    medians = [np.median(result.samples(arm)) for arm in ("baseline", "quantized")]
    assert medians[0] / medians[1] != pytest.approx(floats / own, rel=1e-4)


def test_a_typical_time_is_the_geometric_mean_of_the_blocks_medians_in_whole_nanoseconds():
    blocks = [
        SampleBlock(0, 0, "quantized", np.array([1, 1_000])),
        SampleBlock(0, 1, "quantized", np.array([100])),
        SampleBlock(1, 0, "quantized", np.array([400, 400])),
    ]
    assert typical(LatencyResult(tuple(blocks), capped=False), "quantized") == (200, 300)
