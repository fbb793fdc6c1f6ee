import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.errors import NonFiniteError, PlugInError
from qb_cluster.quantization.affine import quantize_dequantize_symmetric
from qb_cluster.quantization.weights import quantize_dequantize_weights, quantize_weights

UNHURRIED = settings(deadline=None)
FLOATS = st.floats(-1e4, 1e4, width=32)
WEIGHTS = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=FLOATS)
BITS = st.integers(2, 16)
GRANULARITIES = (
    {"granularity": "per_tensor"},
    {"granularity": "per_channel"},
    {"granularity": "per_group", "group_size": 4},
)
RANGES = ({}, {"narrow_range": False}, {"symmetric": False})
FORMATS = ("fp16", "bf16", "fp8_e4m3", "fp8_e5m2")
OPTIONS = st.sampled_from([a | b for a in GRANULARITIES for b in RANGES])


def scheme(**options):
    return Scheme("test", **options)


def rounded(weights, bits, **options):
    return quantize_dequantize_weights(weights, scheme(**options), Bits(bits))


def squared_error(weights, got):
    return float(np.sum((weights.astype(np.float64) - got) ** 2))


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(WEIGHTS, BITS)
@UNHURRIED
def test_the_default_scheme_is_the_arithmetic_that_backends_store(weights, bits):
    got = rounded(weights, bits)
    np.testing.assert_array_equal(got, quantize_dequantize_symmetric(weights, bits))


@given(WEIGHTS, BITS, OPTIONS)
@UNHURRIED
def test_integers_and_scales_give_back_the_rounded_weights(weights, bits, options):
    stored = quantize_weights(weights, scheme(**options), Bits(bits))
    lowest, highest = stored.integers.min(), stored.integers.max()
    limit = 2 ** (bits - 1)
    if not options.get("symmetric", True):
        assert 0 <= lowest <= highest < 2 * limit
    else:
        assert (1 if options.get("narrow_range", True) else 0) - limit <= lowest
        assert highest < limit
        assert not stored.zero_point.any()
    again = (stored.integers - stored.zero_point) * stored.scale
    np.testing.assert_allclose(again, rounded(weights, bits, **options), rtol=1e-6, atol=1e-37)


@given(WEIGHTS, BITS, OPTIONS)
@UNHURRIED
def test_min_max_errs_by_at_most_half_a_step_but_for_the_zero_point(weights, bits, options):
    # Rounding an affine zero point may push one end of the range out by another half step.
    steps = 1.0 if not options.get("symmetric", True) else 0.5
    scale = quantize_weights(weights, scheme(**options), Bits(bits)).scale
    error = np.abs(weights.astype(np.float64) - rounded(weights, bits, **options))
    assert np.all(error <= steps * scale * (1 + 1e-4) + np.abs(weights) * 1e-6 + 1e-30)


@given(WEIGHTS, BITS, OPTIONS, st.sampled_from(["minmax", "mse"]))
@UNHURRIED
def test_quantizing_twice_changes_nothing_more(weights, bits, options, weight_range):
    once = rounded(weights, bits, weight_range=weight_range, **options)
    twice = rounded(once, bits, weight_range=weight_range, **options)
    np.testing.assert_allclose(twice, once, rtol=1e-5, atol=1e-5 * np.abs(once).max() + 1e-30)


@given(WEIGHTS, BITS, OPTIONS, st.sampled_from(["minmax", "mse"]))
@UNHURRIED
def test_zero_stays_exactly_zero(weights, bits, options, weight_range):
    weights[0, 0] = 0
    assert rounded(weights, bits, weight_range=weight_range, **options)[0, 0] == 0


@given(WEIGHTS, BITS, OPTIONS)
@UNHURRIED
def test_the_mse_clip_is_never_worse_than_min_max(weights, bits, options):
    clipped = rounded(weights, bits, weight_range="mse", **options)
    covered = rounded(weights, bits, **options)
    largest = float(np.abs(weights).max())
    rounding = weights.size * (1e-6 * largest) ** 2  # of float32 itself
    assert squared_error(weights, clipped) <= squared_error(weights, covered) * 1.001 + rounding


@given(WEIGHTS, st.sampled_from([(2, 3), (2, 9), (3, 5), (3, 9), (4, 7), (5, 9), (6, 11)]))
@UNHURRIED
def test_the_error_never_grows_with_bits_where_levels_are_nested(weights, widths):
    # Levels are k / (2^(b-1) - 1) of the largest weight; those of b are among those of b' when
    # b - 1 divides b' - 1. Without that a single tensor may well lose: 1/3 is exact in 3 bits only.
    few, many = (np.abs(weights - rounded(weights, bits)) for bits in widths)
    assert np.all(many <= few + 1e-6 * np.abs(weights).max() + 1e-30)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("options", RANGES, ids=str)
@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
def test_on_gaussian_weights_each_bit_lowers_the_error(granularity, options, weight_range):
    weights = gaussian((8, 512))
    errors = [
        squared_error(
            weights, rounded(weights, bits, weight_range=weight_range, **granularity, **options)
        )
        for bits in range(2, 17)
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


@given(WEIGHTS, BITS, st.sampled_from(RANGES))
@UNHURRIED
def test_finer_granularity_never_has_a_larger_step(weights, bits, options):
    # The theorem behind "finer is better": the step, and with it the bound on every error. The
    # error itself is not bound to fall, for the levels of two granularities are not nested.
    tensor, channel, group = (
        np.broadcast_to(
            quantize_weights(weights, scheme(**options, **finer), Bits(bits)).scale, weights.shape
        )
        for finer in GRANULARITIES
    )
    real = np.abs(weights).max(axis=1, keepdims=True) > 1e-30  # else the scale is 1
    slack = 1 + 1e-6
    assert np.all((channel <= tensor * slack) | ~real)
    seen = group < 1  # an all-zero group has scale 1, and no error
    assert np.all((group <= channel * slack) | ~seen | ~real)


@pytest.mark.parametrize("options", RANGES, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_on_gaussian_weights_finer_granularity_has_the_smaller_error(options, bits):
    weights = gaussian((16, 512)) * np.geomspace(0.2, 1, 16, dtype=np.float32)[:, None]
    group = {"granularity": "per_group", "group_size": 32}
    errors = [
        squared_error(weights, rounded(weights, bits, **finer, **options))
        for finer in (group, *GRANULARITIES[1::-1])
    ]
    assert errors == sorted(errors)


def test_half_steps_round_to_even():
    weights = np.array([[0.5, 1.5, 2.5, 127.0]], np.float32)
    assert quantize_weights(weights, scheme(), Bits(8)).integers.tolist() == [[0, 2, 2, 127]]


def test_full_range_uses_the_lowest_integer_and_clips_nothing():
    weights = np.array([[-8.0, 7.0], [-1.0, 7.0]], np.float32)
    stored = quantize_weights(weights, scheme(narrow_range=False), Bits(4))
    assert stored.integers.tolist() == [[-8, 7], [-1, 7]]
    np.testing.assert_array_equal(stored.dequantized(), weights)


def test_affine_uses_all_levels_of_a_lopsided_channel():
    weights = np.arange(16, dtype=np.float32)[None]
    stored = quantize_weights(weights, scheme(symmetric=False), Bits(4))
    assert stored.integers.tolist() == [list(range(16))]
    assert (stored.scale.item(), stored.zero_point.item()) == (1.0, 0)


def test_a_short_last_group_has_a_scale_of_its_own():
    weights = np.array([[7, 1, 70, 10, 0.7], [1, 2, 3, 4, 5]], np.float32)
    stored = quantize_weights(weights, scheme(granularity="per_group", group_size=2), Bits(4))
    np.testing.assert_allclose(stored.scale[0], [1, 1, 10, 10, 0.1], rtol=1e-6)
    assert stored.integers[0].tolist() == [7, 1, 7, 1, 7]


def test_groups_run_along_the_flattened_inputs_of_a_channel():
    weights = gaussian((3, 2, 5))
    options = {"granularity": "per_group", "group_size": 4}
    flat = rounded(weights.reshape(3, 10), 4, **options)
    np.testing.assert_array_equal(rounded(weights, 4, **options), flat.reshape(3, 2, 5))


def test_scales_are_broadcastable_and_one_a_group_can_be_read():
    weights = gaussian((3, 2, 5))
    shapes = {
        granularity["granularity"]: quantize_weights(
            weights, scheme(**granularity), Bits(4)
        ).scale.shape
        for granularity in GRANULARITIES
    }
    expected = {"per_tensor": (1, 1, 1), "per_channel": (3, 1, 1), "per_group": (3, 2, 5)}
    assert shapes == expected
    group = quantize_weights(weights, scheme(**GRANULARITIES[2]), Bits(4)).scale
    assert group.reshape(3, -1)[:, ::4].shape == (3, 3)


@pytest.mark.parametrize(
    ("number", "largest", "float_type"),
    [("fp8_e4m3", 448, ml_dtypes.float8_e4m3fn), ("fp8_e5m2", 57344, ml_dtypes.float8_e5m2)],
)
def test_fp8_maps_the_largest_weight_of_a_channel_to_the_largest_number(
    number, largest, float_type
):
    weights = gaussian((4, 50)) * np.array([[1e-3], [1], [50], [1e30]], np.float32)
    got = rounded(weights, 8, number=number)
    scale = np.abs(weights).max(axis=1, keepdims=True) / largest
    held = (got / scale).astype(float_type).astype(np.float64)
    np.testing.assert_allclose(got, held * scale, rtol=1e-6)
    np.testing.assert_allclose(np.abs(got).max(axis=1), np.abs(weights).max(axis=1), rtol=1e-6)


def test_half_precision_rounds_as_ieee_does_and_saturates():
    weights = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 1e38, -1e38, 6e-8]], np.float32)
    got = rounded(weights, 16, number="fp16")
    assert got.tolist() == [[1.0, 1 + 2**-9, 65504.0, -65504.0, 2.0**-24]]
    assert rounded(np.float32([[1 + 2**-8, 3e38]]), 16, number="bf16")[0, 0] == 1.0


@pytest.mark.parametrize("number", FORMATS)
def test_float_formats_quantize_twice_alike(number):
    once = rounded(gaussian((5, 40)), 8, number=number)
    np.testing.assert_allclose(rounded(once, 8, number=number), once, rtol=1e-6)


EVERY_OPTION = [
    granularity | other | {"weight_range": weight_range}
    for granularity in GRANULARITIES
    for other in (*RANGES, *({"number": number} for number in FORMATS))
    for weight_range in ("minmax", "mse")
] + [g | {"narrow_range": False, "weight_range": "signed_max"} for g in GRANULARITIES]


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_odd_tensors_stay_finite_and_keep_their_shape(options, bits):
    plain = gaussian((3, 5, 7))
    odd = {
        "one channel": plain[:1],
        "one weight each": plain[:, 0, 0],
        "scalar": plain[0, 0, 0].reshape(()),
        "empty": plain[:0],
        "all zero": np.zeros_like(plain),
        "constant": np.full_like(plain, 5),
        "denormal": plain * np.float32(1e-42),
        "huge": plain / np.abs(plain).max() * np.float32(3.4e38),
    }
    for what, weights in odd.items():
        got = rounded(weights, bits, **options)
        assert got.shape == weights.shape, what
        assert got.dtype == np.float32, what
        assert np.isfinite(got).all(), what
    assert not rounded(odd["all zero"], bits, **options).any()


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_a_constant_channel_is_exact(options):
    weights = np.array([[5.0] * 8, [-3.0] * 8], np.float32)
    if options["granularity"] != "per_tensor":
        np.testing.assert_allclose(rounded(weights, 4, **options), weights, rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("number", ["integer", *FORMATS])
def test_weights_that_are_not_finite_are_refused_with_advice(broken, number):
    weights = gaussian((2, 3))
    weights[1, 1] = broken
    with pytest.raises(NonFiniteError, match=r"conv1: 1 of 6 weights .*load or train"):
        quantize_dequantize_weights(weights, scheme(number=number), Bits(8), name="conv1")


def test_a_weight_quantizer_of_the_users_own_is_used():
    got = rounded(gaussian((2, 3)), 4, weight_quantizer=lambda weights, bits: weights * 0 + bits)
    np.testing.assert_array_equal(got, np.full((2, 3), 4, np.float32))


@pytest.mark.parametrize(
    ("quantizer", "said"),
    [
        (lambda weights, _: weights[0], r"shape \(3,\)"),
        (lambda weights, _: weights.astype(int), "int64"),
    ],
)
def test_a_weight_quantizer_that_returns_no_weights_is_named(quantizer, said):
    with pytest.raises(PlugInError, match=f"scheme 'test'.*{said}"):
        rounded(gaussian((2, 3)), 4, weight_quantizer=quantizer)


def test_a_weight_quantizer_cannot_change_the_model():
    weights = gaussian((2, 3))
    before = weights.copy()

    def careless(values, bits):
        values *= 0
        return values

    rounded(weights, 4, weight_quantizer=careless)
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize("options", [{"number": "fp16"}, {"weight_quantizer": lambda w, _: w}])
def test_schemes_without_integers_have_none(options):
    with pytest.raises(ValueError, match="no integers"):
        quantize_weights(gaussian((2, 3)), scheme(**options), Bits(16))
