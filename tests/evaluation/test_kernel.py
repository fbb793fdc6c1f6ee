import numpy as np
import pytest

from qb_cluster.evaluation.kernel import faithfulness

RNG = np.random.default_rng(0)
FLOAT = RNG.standard_normal((200, 10))


def noisy(decibels, seed):
    return FLOAT + np.random.default_rng(seed).standard_normal(FLOAT.shape) * 10 ** (-decibels / 20)


@pytest.mark.parametrize(("native_db", "is_mismatch"), [(40, False), (28, False), (22, True)])
def test_fifteen_decibels_below_the_simulation_is_another_computation(native_db, is_mismatch):
    compared = faithfulness(FLOAT, noisy(native_db, 1), noisy(40, 2))
    assert compared.is_mismatch == is_mismatch
    assert compared.native_db == pytest.approx(native_db, abs=1)


def test_a_few_clipped_examples_do_not_condemn_a_kernel():
    native = noisy(40, 1)
    native[:10] *= 0.5
    assert not faithfulness(FLOAT, native, noisy(40, 2)).is_mismatch


def test_at_few_bits_classes_tell_what_decibels_cannot():
    # Both near 0 dB: a 2-bit scheme that keeps half of the classes, and a kernel that keeps none.
    scheme = 0.3 * FLOAT + noisy(3, 1) * 0.3
    garbage = np.roll(FLOAT, 1, axis=1) * 0.2
    compared = faithfulness(FLOAT, garbage, scheme)
    assert compared.native_db > compared.simulated_db - 15
    assert compared.is_mismatch


def test_a_kernel_better_than_its_simulation_is_right():
    assert not faithfulness(FLOAT, noisy(60, 1), noisy(20, 2)).is_mismatch
    assert not faithfulness(FLOAT, FLOAT, noisy(20, 2)).is_mismatch


def test_outputs_without_classes_are_judged_by_decibels_alone():
    one = FLOAT[:, :1]
    compared = faithfulness(one, one + 0.001, one + 0.001)
    assert compared.native_agreement is None
    assert not compared.is_mismatch
