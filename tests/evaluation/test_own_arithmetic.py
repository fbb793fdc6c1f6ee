import numpy as np
import pytest

from qb_cluster.evaluation.own_arithmetic import departure

RNG = np.random.default_rng(0)
N = 64
FLOAT = RNG.standard_normal((N, 10))
NOISE = RNG.standard_normal((N, 10))
REFERENCE = FLOAT + 0.01 * NOISE  # 40 dB from float


def rounded_otherwise(share):
    """The reference, but for noise of a share of its own."""
    return REFERENCE + np.sqrt(share) * 0.01 * RNG.standard_normal((N, 10))


@pytest.mark.parametrize("share", [0, 1e-6, 0.1, 0.5])
def test_kernels_that_round_otherwise_are_right(share):
    assert departure(FLOAT, REFERENCE, rounded_otherwise(share)).fault == ""


def test_twice_and_more_of_the_schemes_own_noise_is_another_computation():
    found = departure(FLOAT, REFERENCE, rounded_otherwise(8))
    assert found.departing > N // 2
    assert f"{found.departing} of 64 examples depart" in found.fault


@pytest.mark.parametrize(
    "wrong",
    [np.arange(N) % 4 == 0, np.arange(N) >= N - 8, np.arange(N) < 15, np.arange(N) == 7],
    ids=["every fourth", "the last eight", "fifteen", "one"],
)
def test_garbage_in_some_examples_is_seen_though_the_median_is_fine(wrong):
    garbage = np.where(wrong[:, None], NOISE, REFERENCE)
    assert departure(FLOAT, REFERENCE, garbage).fault


def test_two_exchanged_examples_are_seen():
    order = np.arange(N)
    order[[3, 40]] = order[[40, 3]]
    found = departure(FLOAT, REFERENCE, REFERENCE[order])
    assert found.departing == 2
    assert "one example is" in found.fault


def test_what_is_better_than_the_artifact_is_as_wrong():
    found = departure(FLOAT, REFERENCE, FLOAT * (1 + 1e-6))
    assert found.gain_db > 60
    assert "less noise than the artifact that they run" in found.fault


def test_a_runtime_that_rounds_unlike_its_reference_has_its_slack():
    other = rounded_otherwise(2)
    assert departure(FLOAT, REFERENCE, other).fault
    assert departure(FLOAT, REFERENCE, other, slack_db=6.0).fault == ""
    assert departure(FLOAT, REFERENCE, rounded_otherwise(30), slack_db=6.0).fault


def test_examples_that_happen_to_lose_nothing_are_no_trap():
    saturated = REFERENCE.copy()
    saturated[:40] = FLOAT[:40]  # such as a softmax that is 0 or 1
    fast = saturated + 1e-3 * RNG.standard_normal((N, 10))
    assert departure(FLOAT, saturated, fast).fault == ""


def test_a_model_whose_outputs_are_exact_is_right_and_nan_is_not():
    assert departure(FLOAT, FLOAT, FLOAT).fault == ""
    broken = np.where(np.arange(N)[:, None] == 5, np.inf, REFERENCE)
    assert departure(FLOAT, REFERENCE, broken).fault


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match="shapes"):
        departure(FLOAT, REFERENCE, REFERENCE[:, :9])
