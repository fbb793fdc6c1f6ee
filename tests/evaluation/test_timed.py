import numpy as np
import pytest

from qb_cluster.errors import KernelMismatchError
from qb_cluster.evaluation.timed import LEAST_DB, check_timed

RNG = np.random.default_rng(0)
FLOAT = RNG.standard_normal((1, 1000)).astype(np.float32)


def noisy(values, db):
    noise = RNG.standard_normal(values.shape).astype(np.float32)
    power = np.sum(values**2) / np.sum(noise**2)
    return values + noise * np.float32(np.sqrt(power / 10 ** (db / 10)))


JUDGED = noisy(FLOAT, 40)


@pytest.mark.parametrize("db", [LEAST_DB + 1, 60, 200])
def test_rounding_passes(db):
    check_timed("it", JUDGED, noisy(JUDGED, db), FLOAT)
    check_timed("it", FLOAT, noisy(FLOAT, db), None)


@pytest.mark.parametrize(
    "timed",
    [
        np.zeros_like(JUDGED),
        np.roll(JUDGED, 1),
        noisy(JUDGED, LEAST_DB - 1),
        JUDGED[:, :999],
        np.where(np.arange(1000) == 3, np.nan, JUDGED),
    ],
    ids=["zeros", "garbage", "noise", "shape", "nan"],
)
def test_another_computation_does_not(timed):
    with pytest.raises(
        KernelMismatchError, match=r"what is timed is not what was judged: .*it gives"
    ):
        check_timed("it", JUDGED, timed, FLOAT)


def test_what_is_far_from_float_may_be_as_far_from_itself_and_no_further():
    rough = noisy(FLOAT, 10)
    check_timed("it", rough, noisy(rough, 11), FLOAT)
    with pytest.raises(KernelMismatchError, match=r"where 10\.0 dB is the least"):
        check_timed("it", rough, noisy(rough, 9), FLOAT)


def test_zeros_that_stay_zeros_are_no_fault():
    zeros = np.zeros_like(FLOAT)
    check_timed("it", zeros, zeros, FLOAT)
