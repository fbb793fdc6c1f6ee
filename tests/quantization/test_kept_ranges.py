from dataclasses import replace

import numpy as np
import pytest

from qb_cluster.contracts import Calibration
from qb_cluster.quantization.kept_ranges import MOST, KeptRanges

EXAMPLES = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
ASKED = {
    "model": b"m",
    "examples": EXAMPLES,
    "calibration": Calibration(),
    "bits": 8,
    "symmetric": False,
}


@pytest.fixture
def count():
    """Ask for ranges in turn; give how often something was observed."""

    def count(*asked):
        kept, seen = KeptRanges(), []
        for one in asked:
            kept.observed(lambda: seen.append(1), **ASKED | one)
        return len(seen)

    return count


def observer(name, **more):
    return {"calibration": Calibration(observer=name), **more}


def test_what_calibrates_alike_is_observed_once(count):
    copied = {"examples": {"x": EXAMPLES["x"].copy()}}
    drawn = {"calibration": Calibration(seed=5, samples=3)}  # the examples themselves count
    assert count({}, copied, drawn, {"bits": 4}, {"symmetric": True}) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"model": b"n"},
        {"examples": {"x": EXAMPLES["x"] + 1}},
        {"examples": {"y": EXAMPLES["x"]}},
        {"examples": {"x": EXAMPLES["x"].reshape(2, 3)}},
        {"examples": {"x": EXAMPLES["x"].astype(np.int32)}},
        observer("entropy"),
    ],
)
def test_whatever_decides_ranges_is_observed_again(count, changed):
    assert count({}, changed) == 2


@pytest.mark.parametrize(
    ("name", "of_bits", "of_symmetry"),
    [
        ("minmax", False, False),
        ("moving_average", False, False),
        ("percentile", False, True),
        ("mse", True, True),
        ("entropy", True, False),
    ],
)
def test_bits_and_symmetry_count_for_the_observers_that_look_at_them(
    count, name, of_bits, of_symmetry
):
    assert count(observer(name), observer(name, bits=4)) == 1 + of_bits
    assert count(observer(name), observer(name, symmetric=True)) == 1 + of_symmetry


def test_the_percentile_counts_for_percentiles_alone(count):
    low = replace(Calibration(), percentile=90)
    assert count({}, {"calibration": low}) == 1
    percentiles = [replace(low, observer="percentile", percentile=p) for p in (90, 99)]
    assert count(*({"calibration": one} for one in percentiles)) == 2


def test_a_failure_is_not_kept_and_old_ranges_go():
    kept = KeptRanges()
    with pytest.raises(ZeroDivisionError):
        kept.observed(lambda: 1 / 0, **ASKED)
    assert kept.observed(lambda: 1, **ASKED) == kept.observed(lambda: 2, **ASKED) == 1
    for number in range(MOST):
        kept.observed(lambda: 0, **ASKED | {"model": b"%d" % number})
    assert kept.observed(lambda: 3, **ASKED) == 3
