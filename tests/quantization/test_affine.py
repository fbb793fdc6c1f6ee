import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    quantize_dequantize_symmetric,
    quantize_symmetric,
    symmetric_limit,
    symmetric_qparams,
)

WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 8)),
    elements=st.floats(-1e4, 1e4, width=32),
)
UNHURRIED = settings(deadline=None)
BITS = st.integers(2, 16)


def sqnr_db(reference, got):
    return 10 * np.log10(np.sum(reference**2) / np.sum((reference - got) ** 2))


@given(WEIGHTS, BITS)
@UNHURRIED
def test_integers_stay_inside_the_narrow_range(weights, bits):
    integers, _ = quantize_symmetric(weights, bits)
    assert np.abs(integers).max() <= symmetric_limit(bits)


@given(WEIGHTS, BITS)
@UNHURRIED
def test_rounding_errs_by_at_most_half_a_step(weights, bits):
    integers, scale = quantize_symmetric(weights, bits)
    error = np.abs(integers.astype(np.float64) * scale - weights)
    assert np.all(error <= scale * 0.5 * (1 + 1e-4) + 1e-30)


@given(WEIGHTS, BITS)
@UNHURRIED
def test_quantizing_twice_changes_nothing_more(weights, bits):
    once = quantize_dequantize_symmetric(weights, bits)
    twice = quantize_dequantize_symmetric(once, bits)
    np.testing.assert_allclose(twice, once, rtol=1e-5, atol=1e-30)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), BITS)
@UNHURRIED
def test_zero_is_exact_in_every_affine_range(a, b, bits):
    scale, zero_point = affine_qparams(min(a, b), max(a, b), bits)
    got = quantize_dequantize_affine(np.zeros(3, np.float32), scale, zero_point, bits)
    assert np.array_equal(got, np.zeros(3))


def test_half_steps_round_to_even():
    weights = np.array([[0.5, 1.5, 2.5, 127.0]], np.float32)
    integers, _ = quantize_symmetric(weights, 8)
    assert integers.tolist() == [[0, 2, 2, 127]]


@pytest.mark.parametrize(("bits", "expected_db"), [(4, 22.92), (8, 48.10)])
def test_uniform_source_meets_its_law(bits, expected_db):
    # 20·log10(2(2^(b-1) - 1)), the narrow-range law for a uniform source.
    values = np.random.default_rng(0).uniform(-1, 1, (1, 400_000)).astype(np.float32)
    assert sqnr_db(values, quantize_dequantize_symmetric(values, bits)) == pytest.approx(
        expected_db, abs=0.1
    )


@pytest.mark.parametrize(("length", "expected_db"), [(9, 47.9), (64, 44.7), (576, 42.6)])
def test_max_abs_int8_on_gaussian_rows_meets_the_table(length, expected_db):
    rows = np.random.default_rng(1).standard_normal((2_000_000 // length, length))
    got = quantize_dequantize_symmetric(rows.astype(np.float32), 8)
    assert sqnr_db(rows, got) == pytest.approx(expected_db, abs=0.25)


def test_a_small_channel_keeps_its_precision_only_per_channel():
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((2, 10_000)).astype(np.float32)
    weights[1] /= 16
    per_channel = quantize_dequantize_symmetric(weights, 8, axis=0)
    per_tensor = quantize_dequantize_symmetric(weights, 8, axis=None)
    loss = sqnr_db(weights[1], per_channel[1]) - sqnr_db(weights[1], per_tensor[1])
    assert loss == pytest.approx(20 * np.log10(16), abs=1.5)


def test_an_all_zero_channel_stays_zero():
    weights = np.zeros((2, 3), np.float32)
    assert np.array_equal(quantize_dequantize_symmetric(weights, 4), weights)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), BITS)
@UNHURRIED
def test_symmetric_qparams_fit_the_affine_quantizer(a, b, bits):
    low, high = min(a, b), max(a, b)
    scale, zero_point = symmetric_qparams(low, high, bits)
    values = np.array([low, 0, high, -high], np.float32)
    got = quantize_dequantize_affine(values, scale, zero_point, bits)
    assert got[1] == 0
    assert got[2] == -got[3]
    assert np.all(np.abs(got - values) <= scale * 0.5 * (1 + 1e-4) + 1e-6 * np.abs(values))


def test_a_range_that_is_all_zero_has_scale_one():
    assert symmetric_qparams(0, 0, 8) == (1.0, 128)
