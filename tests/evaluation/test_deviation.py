import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qb_cluster.evaluation.deviation import deviation


@given(st.floats(5, 60))
def test_sqnr_is_the_noise_that_was_added(decibels):
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((100, 20))
    noise = rng.standard_normal((100, 20))
    noise *= np.sqrt(np.sum(signal**2) / np.sum(noise**2) / 10 ** (decibels / 10))
    assert deviation(signal, signal + noise).sqnr_db == pytest.approx(decibels, abs=1e-6)


@pytest.mark.parametrize(("decibels", "flips"), [(10, 0.0975), (20, 0.0317), (30, 0.0101)])
def test_sign_flips_at_a_gaussian_margin_follow_the_law(decibels, flips):
    # Two classes whose margin is Gaussian: arctan(10^(-dB/20)) / π of them change sides.
    rng = np.random.default_rng(1)
    margin = rng.standard_normal(400_000)
    noisy = margin + rng.standard_normal(400_000) * 10 ** (-decibels / 20)
    agreement = deviation(
        np.stack([margin, -margin], axis=1), np.stack([noisy, -noisy], axis=1)
    ).top1_agreement
    assert 1 - agreement == pytest.approx(flips, rel=0.03)


def test_equal_outputs_have_infinite_sqnr_and_cosine_one():
    outputs = np.arange(6.0).reshape(3, 2)
    same = deviation(outputs, outputs)
    assert same.sqnr_db == np.inf
    assert same.cosine == pytest.approx(1)
    assert same.max_abs_error == 0
    assert same.top1_agreement == 1


def test_max_abs_error_is_the_worst_single_output():
    one, two = np.zeros((4, 3)), np.zeros((4, 3))
    two[2, 1] = -0.25
    assert deviation(one, two).max_abs_error == 0.25


def test_outputs_without_classes_have_no_agreement():
    assert deviation(np.ones((5, 1)), np.ones((5, 1)) * 2).top1_agreement is None


def test_outputs_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        deviation(np.ones((5, 2)), np.ones((5, 3)))
