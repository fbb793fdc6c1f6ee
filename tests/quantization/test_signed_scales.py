"""Scales of either sign: the grid of ggml's Q4_0 and of onnxruntime's MatMulNBits quantizer."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.quantization import schemes
from qb_cluster.quantization.grid import Grid
from qb_cluster.quantization.weights import quantize_dequantize_weights, quantize_weights

UNHURRIED = settings(deadline=None)
# No denormals: a scale below the smallest normal number is 1.
FLOATS = st.floats(-1e4, 1e4, width=32).filter(lambda value: not 0 < abs(value) < 1e-30)
WEIGHTS = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=FLOATS)
BITS = st.integers(2, 16)
GRANULARITIES = (
    {"granularity": "per_tensor"},
    {"granularity": "per_channel"},
    {"granularity": "per_group", "group_size": 4},
)
GRANULARITY = st.sampled_from(GRANULARITIES)
DOCUMENT = Path(__file__).parents[2] / "docs" / "schemes.md"


def signed(**granularity):
    return Scheme("signed", narrow_range=False, weight_range="signed_max", **granularity)


def rows_of(weights, granularity):
    """Give rows of weights that share a scale."""
    match granularity["granularity"]:
        case "per_tensor":
            return weights.reshape(1, -1)
        case "per_channel":
            return weights
    padded = np.pad(weights, ((0, 0), (0, -weights.shape[1] % 4)))
    return padded.reshape(-1, 4)


@given(WEIGHTS, BITS, GRANULARITY)
@UNHURRIED
def test_the_weight_of_largest_magnitude_is_exact_and_the_lowest_integer(
    weights, bits, granularity
):
    stored = quantize_weights(weights, signed(**granularity), Bits(bits))
    integers, back, exact = (
        rows_of(array, granularity) for array in (stored.integers, stored.dequantized(), weights)
    )
    for row, got, integer in zip(exact, back, integers, strict=True):
        largest = np.abs(row).max()
        if largest:
            at = int(np.argmin(np.where(np.abs(row) == largest, row, np.inf)))  # of two, minus
            assert got[at] == row[at]
            assert integer[at] == -(2 ** (bits - 1))


@given(WEIGHTS, BITS, GRANULARITY)
@UNHURRIED
def test_only_what_is_clipped_at_the_opposite_end_errs_by_more_than_half_a_step(
    weights, bits, granularity
):
    stored = quantize_weights(weights, signed(**granularity), Bits(bits))
    scale = stored.scale.astype(np.float64)
    highest = 2 ** (bits - 1) - 1
    error = np.abs(weights.astype(np.float64) - stored.dequantized()) / np.abs(scale)
    clipped = weights / scale > highest + 0.5
    rounding = 2.0 ** (bits - 24)  # of float32: integers go up to 2^(bits-1)
    assert np.all(error[~clipped] <= 0.5 + rounding)
    assert np.all(error[clipped] <= 1 + rounding)
    assert np.all(np.broadcast_to(stored.integers, weights.shape)[clipped] == highest)


@given(WEIGHTS, BITS, GRANULARITY)
@UNHURRIED
def test_quantizing_twice_changes_nothing_and_zero_stays_zero(weights, bits, granularity):
    weights[0, 0] = 0
    once = quantize_dequantize_weights(weights, signed(**granularity), Bits(bits))
    twice = quantize_dequantize_weights(once, signed(**granularity), Bits(bits))
    assert once[0, 0] == 0
    np.testing.assert_array_equal(twice, once)


@given(WEIGHTS, BITS)
@UNHURRIED
def test_finer_granularity_never_has_a_larger_step(weights, bits):
    tensor, channel, group = (
        np.broadcast_to(
            np.abs(quantize_weights(weights, signed(**finer), Bits(bits)).scale), weights.shape
        )
        for finer in GRANULARITIES
    )
    zero = rows_of(np.broadcast_to(channel, weights.shape), {"granularity": "per_channel"}) == 1
    assert np.all((channel <= tensor) | zero)
    assert np.all((group <= channel) | (group == 1))


@pytest.mark.parametrize(
    ("weights", "scale", "integers"),
    [
        ([8.0, -3.0, 0.5, 1.5], -1.0, [-8, 3, 0, -2]),  # half steps round to even
        ([-8.0, 8.0, 7.4, 0.0], 1.0, [-8, 7, 7, 0]),
        ([8.0, -8.0, -7.6, 7.5], 1.0, [7, -8, -8, 7]),  # of two largest the negative one
    ],
)
def test_the_sign_of_the_scale_is_opposite_to_the_largest_weight(weights, scale, integers):
    stored = quantize_weights(np.array([weights], np.float32), signed(), Bits(4))
    assert stored.scale.item() == scale
    assert stored.integers.tolist() == [integers]
    assert not stored.zero_point.any()


@pytest.mark.frameworks
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_integers_and_scales_are_those_of_onnxruntimes_own_quantizer(bits, block):
    import onnxruntime.capi._pybind_state as kernels

    rng = np.random.default_rng(bits * block)
    outputs, blocks = 24, 6
    for draw in (rng.standard_normal, lambda shape: rng.laplace(size=shape), rng.random):
        weights = draw((outputs, blocks * block)).astype(np.float32) * np.float32(0.7)
        scheme = signed(granularity="per_group", group_size=block)
        stored = quantize_weights(weights, scheme, Bits(bits))
        packed = np.zeros((outputs, blocks, block * bits // 8), np.uint8)
        scales = np.zeros(outputs * blocks, np.float32)
        zero_points = np.zeros(outputs * -(-blocks * bits // 8), np.uint8)
        theirs = getattr(kernels, f"quantize_matmul_{bits}bits")
        theirs(
            packed,
            np.ascontiguousarray(weights.T),
            scales,
            zero_points,
            block,
            outputs,
            blocks * block,
            True,
        )
        # Theirs may divide by way of the reciprocal: a unit in the last place.
        np.testing.assert_allclose(
            stored.scale[:, ::block], scales.reshape(outputs, -1), rtol=2e-7, atol=0
        )
        shifts = bits * np.arange(8 // bits)
        codes = (packed[..., None] >> shifts & (2**bits - 1)).reshape(weights.shape)
        differ = stored.integers != codes.astype(int) - 2 ** (bits - 1)
        halves = np.abs(np.abs(weights / stored.scale) % 1 - 0.5) < 1e-4  # they round up
        assert not (differ & ~halves).any()
        assert differ.mean() < 0.001


# The default


def test_groups_of_weight_only_have_signed_scales_unless_a_grid_is_given():
    groups = {"granularity": "per_group", "group_size": 32}
    made = schemes.weight_only(**groups)
    assert (made.weight_range, made.narrow_range) == ("signed_max", False)
    for given_, expected in (
        ({"weight_range": "minmax"}, ("minmax", True)),
        ({"weight_range": "mse"}, ("mse", True)),
        ({"narrow_range": True}, ("minmax", True)),
        ({"narrow_range": False}, ("minmax", False)),
        ({"symmetric": False}, ("minmax", True)),
    ):
        made = schemes.weight_only(**groups, **given_)
        assert (made.weight_range, made.narrow_range) == expected


@pytest.mark.parametrize("scheme", [schemes.weight_only, schemes.dynamic, schemes.static])
def test_other_granularities_and_schemes_keep_the_narrow_grid_unless_asked(scheme):
    plain = [{}, {"granularity": "per_tensor"}]
    if scheme is not schemes.weight_only:
        plain.append({"granularity": "per_group", "group_size": 32})
    for options in plain:
        assert Grid.of(scheme(**options), 4) == Grid("narrow", -7, 7)
    asked = scheme(weight_range="signed_max")
    assert Grid.of(asked, 4) == Grid("signed", -8, 7)


@pytest.mark.parametrize("wrong", [{"symmetric": False}, {"narrow_range": True}])
def test_signed_scales_of_another_grid_are_refused_with_what_to_give(wrong):
    options = {"symmetric": True, "narrow_range": False} | wrong
    with pytest.raises(ValueError, match="give symmetric: true and narrow_range: false"):
        Scheme("s", weight_range="signed_max", **options)


# The documentation


def test_the_documented_decibels_of_every_grid_are_measured():
    rng = np.random.default_rng(0)
    shape = (512, 1024)
    sources = [rng.standard_normal(shape), rng.laplace(size=shape), rng.uniform(-1, 1, shape)]
    table = re.findall(
        r"^\| `(.*?)` \| .*? \|((?: [\d.]+ \|){6})$", DOCUMENT.read_text(), re.MULTILINE
    )
    assert len(table) == 5
    for options, row in table:
        told = [float(cell) for cell in row.strip(" |").split("|")]
        given_ = dict(re.findall(r"(\w+): (\w+)", options))
        narrow = given_.get("narrow_range", "true") == "true"
        weight_range = given_.get("weight_range", "minmax")
        scheme = Scheme(
            "s",
            granularity="per_group",
            group_size=32,
            narrow_range=narrow and weight_range != "signed_max",
            weight_range=weight_range,
        )
        found = []
        for bits in (4, 2):
            for source in sources:
                weights = source.astype(np.float32)
                error = weights - quantize_dequantize_weights(weights, scheme, Bits(bits))
                found.append(10 * np.log10(np.sum(source**2) / np.sum(error.astype(float) ** 2)))
        np.testing.assert_allclose(told, found, atol=0.1, err_msg=options)
