"""What a weight should give, and decibels."""

import math

import numpy as np
import pytest

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.quantization.gaussian import decibels, expected_weight_sqnr_db, weight_sqnr_db


@pytest.mark.parametrize(("length", "expected"), [(9, 47.9), (64, 44.7), (576, 42.6), (4096, 41.3)])
def test_gaussian_rows_at_eight_bits_give_the_known_decibels(length, expected):
    found = expected_weight_sqnr_db((100, length), Scheme("weight_only"), Bits(8))
    assert found == pytest.approx(expected, abs=0.3)


def test_expected_decibels_follow_the_scheme():
    def found(**options):
        return expected_weight_sqnr_db((64, 512), Scheme("weight_only", **options), Bits(4))

    assert found(weight_range="mse") == pytest.approx(18.9, abs=0.5)
    assert found(granularity="per_tensor") < found() < found(granularity="per_group", group_size=32)
    assert expected_weight_sqnr_db((64, 512), Scheme("bf16", number="bf16"), Bits(16, 16)) > 50
    assert found(weight_quantizer=lambda weights, _: weights) is None


def test_noise_of_a_tenth_is_twenty_decibels_and_none_is_infinite():
    exact = np.array([[3.0, 4.0]], np.float32)
    assert weight_sqnr_db(exact, exact * np.float32(1.1)) == pytest.approx(20, abs=1e-4)
    assert weight_sqnr_db(exact, exact) == math.inf
    assert decibels(0.0, 1.0) == -math.inf
