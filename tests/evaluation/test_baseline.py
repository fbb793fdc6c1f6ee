import numpy as np
import pytest

from qb_cluster.errors import BaselineMismatchError
from qb_cluster.evaluation.baseline import FULL, check, doubt, is_constant

RNG = np.random.default_rng(0)
MODEL = RNG.standard_normal((8, 10)).astype(np.float32)
NOISE = RNG.standard_normal((8, 10)).astype(np.float32)


def test_a_conversion_that_rounds_passes_with_its_decibels():
    assert check(MODEL, MODEL, FULL) == np.inf
    assert check(MODEL, MODEL + 1e-6 * NOISE, FULL) == pytest.approx(120, abs=3)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros_like(MODEL),
        MODEL + 0.1 * NOISE[0],  # a bias that was lost
        MODEL[:, ::-1],
        np.where(np.arange(8)[:, None] == 3, MODEL + 0.1, MODEL),  # in one example of eight
        np.where(np.arange(8)[:, None] == 3, np.nan, MODEL),
    ],
    ids=["zeros", "bias", "order", "one example", "nan"],
)
def test_another_model_does_not(wrong):
    with pytest.raises(BaselineMismatchError, match="the float artifact is not the model"):
        check(MODEL, wrong, FULL)


def test_another_shape_is_named():
    with pytest.raises(BaselineMismatchError, match=r"shape \(8, 9\).*\(8, 10\)"):
        check(MODEL, MODEL[:, :9], FULL)


def test_who_says_that_it_computes_in_fewer_bits_may():
    in_bf16 = MODEL * np.float32(1 + 2**-6)
    with pytest.raises(BaselineMismatchError):
        check(MODEL, in_bf16, FULL)
    assert 30 < check(MODEL, in_bf16, "bf16") < 40


def test_an_example_whose_outputs_are_all_near_zero_has_no_digits_to_lose():
    faint = MODEL.copy()
    faint[2] *= 1e-9
    off = faint.copy()
    off[2] += 1e-8
    assert check(faint, off, FULL) > 100


def test_a_model_that_answers_differently_each_time_is_told():
    assert doubt(MODEL, MODEL + 1e-6 * NOISE) is None
    assert "answers differently each time (20." in doubt(MODEL, MODEL + 0.1 * NOISE)


def test_the_same_for_every_example_is_constant_and_one_example_is_not():
    assert is_constant(np.repeat(MODEL[:1], 5, axis=0))
    assert not is_constant(MODEL)
    assert not is_constant(MODEL[:1])
