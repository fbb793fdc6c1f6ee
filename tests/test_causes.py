"""The cause of another library's error, in one line."""

import re

import pytest

from qb_cluster.causes import LONGEST, cause, refusals
from qb_cluster.errors import DataError, UnsupportedError


def wrapped(error):
    outer = RuntimeError("wrapped")
    outer.__cause__ = error
    return outer


def test_a_cause_is_the_first_error_in_one_line():
    assert cause(wrapped(ValueError("the\n cause"))) == "ValueError: the cause"
    assert cause(ValueError("\x1b[1;96mthe cause\x1b[0m\n\nadvice")) == "ValueError: the cause"
    assert cause(AssertionError()) == "AssertionError"


def test_a_long_cause_keeps_its_beginning_and_its_end():
    told = cause(ValueError("a" * 1000 + "b" * 1000))
    assert told.startswith("ValueError: aaa")
    assert told.endswith("bbb")
    assert LONGEST < len(told) < LONGEST + 20


def test_noise_is_left_out():
    assert (
        cause(ValueError("[code 7] no scale"), re.compile(r"\[code \d\] "))
        == "ValueError: no scale"
    )


def test_whatever_is_raised_is_refused_with_its_cause_and_what_to_do():
    error = KeyError("head")
    with (
        pytest.raises(UnsupportedError, match=r"^it cannot \(KeyError: 'head'\); do this$") as told,
        refusals("it cannot", "do this"),
    ):
        raise error
    assert told.value.__cause__ is error


def test_an_error_that_has_a_status_keeps_it():
    with pytest.raises(DataError, match="no examples"), refusals("it cannot", "do this"):
        raise DataError("no examples")
