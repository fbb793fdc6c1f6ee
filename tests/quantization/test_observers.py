import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qb_cluster.contracts import Calibration
from qb_cluster.errors import DataError, NonFiniteError
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    symmetric_qparams,
)
from qb_cluster.quantization.observers import DECAY, make_observer

UNHURRIED = settings(deadline=None)
NAMES = ("minmax", "moving_average", "percentile", "mse", "entropy")
ORDERLESS = ("minmax", "percentile", "mse", "entropy")
VALUES = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 5)),
    elements=st.floats(-1e4, 1e4, width=32),
)


def observed(name, values, *, bits=8, symmetric=False, batches=1, percentile=99.99):
    calibration = Calibration(observer=name, percentile=percentile)
    observer = make_observer(calibration, bits, symmetric=symmetric)
    for batch in np.array_split(np.asarray(values), batches):
        observer.update(batch)
    return observer.range()


def squared_error(values, ends, bits, *, symmetric):
    qparams = (symmetric_qparams if symmetric else affine_qparams)(*ends, bits)
    got = quantize_dequantize_affine(values, *qparams, bits)
    return float(np.sum((values.astype(np.float64) - got) ** 2))


def gaussian(seed=0, shape=(200, 1000)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(VALUES, st.sampled_from(NAMES), st.integers(2, 16), st.booleans())
@UNHURRIED
def test_the_range_lies_inside_what_was_seen(values, name, bits, symmetric):
    low, high = observed(name, values, bits=bits, symmetric=symmetric)
    slack = 1e-6 * np.abs(values).max()
    assert values.min() - slack <= low <= high <= values.max() + slack


@given(VALUES, st.sampled_from(ORDERLESS), st.booleans(), st.randoms())
@UNHURRIED
def test_the_order_of_values_does_not_matter(values, name, symmetric, random):
    shuffled = values.ravel().tolist()
    random.shuffle(shuffled)
    shuffled = np.array(shuffled, np.float32).reshape(values.shape)
    assert observed(name, shuffled, symmetric=symmetric) == observed(
        name, values, symmetric=symmetric
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_how_examples_are_batched_does_not_matter(name, symmetric):
    values = gaussian(shape=(64, 50))
    one = observed(name, values, symmetric=symmetric)
    assert observed(name, values, symmetric=symmetric, batches=7) == pytest.approx(one)


@given(VALUES)
@UNHURRIED
def test_minmax_is_the_true_minimum_and_maximum(values):
    assert observed("minmax", values, batches=2) == (values.min(), values.max())


def test_the_moving_average_keeps_its_decay_with_each_example():
    values = np.array([[-1.0, 3.0], [-2.0, 1.0], [0.0, 5.0]])
    low = DECAY * (DECAY * -1 + (1 - DECAY) * -2) + (1 - DECAY) * 0
    high = DECAY * (DECAY * 3 + (1 - DECAY) * 1) + (1 - DECAY) * 5
    assert observed("moving_average", values) == pytest.approx((low, high))


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_percentiles_are_numpys_within_half_a_percent(percent, scale):
    values = gaussian() * np.float32(scale) + np.float32(scale)
    cut = (100 - percent) / 2
    two_sided = tuple(np.percentile(values, [cut, 100 - cut]))
    assert observed("percentile", values, percentile=percent) == pytest.approx(two_sided, rel=5e-3)
    one = float(np.percentile(np.abs(values), percent))
    low, high = observed("percentile", values, percentile=percent, symmetric=True)
    assert high == pytest.approx(one, rel=5e-3)
    assert low == max(-high, values.min())


def test_the_whole_is_the_hundredth_percentile():
    values = gaussian(shape=(10, 10))
    assert observed("percentile", values, percentile=100) == (values.min(), values.max())


@pytest.mark.parametrize("percent", [49.9, 100.1])
def test_a_percentile_beyond_its_bounds_is_refused(percent):
    with pytest.raises(ValueError, match="50 to 100"):
        observed("percentile", gaussian(shape=(2, 2)), percentile=percent)


@pytest.mark.parametrize(
    ("bits", "clip"), [(2, 1.224), (3, 1.952), (4, 2.474), (5, 2.899), (6, 3.270), (8, 3.921)]
)
def test_the_mse_clip_of_a_gaussian_is_the_optimal_one(bits, clip):
    # The clips of optimal uniform quantization over ±(2^(b-1) - 1), by quadrature.
    low, high = observed("mse", gaussian(), bits=bits, symmetric=True)
    assert (-low, high) == pytest.approx((clip, clip), rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("source", ["gaussian", "laplace", "relu", "shifted"])
def test_no_other_observer_has_a_smaller_squared_error_than_mse(bits, symmetric, source):
    values = {
        "gaussian": gaussian(),
        "laplace": np.random.default_rng(1).laplace(size=(200, 1000)).astype(np.float32),
        "relu": np.maximum(gaussian(), 0),
        "shifted": gaussian() + 4,
    }[source]
    errors = {
        name: squared_error(
            values,
            observed(name, values, bits=bits, symmetric=symmetric),
            bits,
            symmetric=symmetric,
        )
        for name in NAMES
    }
    assert errors["mse"] <= min(errors.values()) * 1.01


def outlier_among(values, outlier):
    values = values.copy()
    values[3, 5] = outlier
    return values


@pytest.mark.parametrize("name", ["percentile", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_outlier_of_a_million_moves_neither_percentile_nor_entropy(name, symmetric, sign):
    values = outlier_among(gaussian(), sign * 1e6)
    low, high = observed(name, values, symmetric=symmetric)
    plain = observed(name, gaussian(), symmetric=symmetric)
    assert (low, high) == pytest.approx(plain, rel=0.02)


def test_minmax_keeps_an_outlier():
    assert observed("minmax", outlier_among(gaussian(), 1e6))[1] == 1e6


def test_mse_weighs_an_outlier_by_its_square():
    # A clip c costs (30 - c)² for the outlier and n·c²/(12·127²) for all others. An outlier of a
    # million is kept: clipping it costs 1e12, and losing all others n.
    values = gaussian()
    clip = 30 / (1 + values.size / (12 * 127**2))
    assert observed("mse", outlier_among(values, 30.0), symmetric=True)[1] == pytest.approx(
        clip, rel=0.02
    )
    assert observed("mse", outlier_among(values, 1e6), symmetric=True)[1] == pytest.approx(
        1e6, rel=1e-3
    )


def test_entropy_clips_the_tail_of_a_laplacian_but_not_the_bulk():
    values = np.random.default_rng(1).laplace(size=(200, 1000)).astype(np.float32)
    low, high = observed("entropy", values, bits=4, symmetric=True)
    assert 4 < high < np.abs(values).max() * 0.8
    assert -low == high


def test_entropy_is_not_drowned_by_the_zeros_of_a_relu():
    values = gaussian()
    assert observed("entropy", np.maximum(values, 0))[1] == pytest.approx(
        observed("entropy", values)[1], rel=0.1
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("constant", [0.0, 5.0, -5.0, 1e-42, 3e38])
def test_a_constant_is_its_own_range(name, symmetric, constant):
    values = np.full((3, 4), constant, np.float32)
    ends = observed(name, values, symmetric=symmetric)
    assert ends == pytest.approx((values[0, 0], values[0, 0]), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_values_far_from_zero_have_a_range_within_them(name, symmetric):
    for values in (gaussian() + 20, gaussian() - 20):
        low, high = observed(name, values, symmetric=symmetric)
        assert values.min() <= low <= high <= values.max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_with_advice(name, broken):
    values = np.array([[1.0, broken], [2.0, 3.0]])
    with pytest.raises(NonFiniteError, match=r"1 activations of 4 .*calibration set"):
        observed(name, values)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_seen_is_an_error_about_the_data(name):
    with pytest.raises(DataError, match="calibration split"):
        observed(name, np.zeros((0, 4)))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_between_others_changes_nothing(name):
    values = gaussian(shape=(8, 5))
    observer = make_observer(Calibration(observer=name), 8, symmetric=False)
    for batch in (values[:4], values[:0], values[4:]):
        observer.update(batch)
    assert observer.range() == pytest.approx(observed(name, values))
