import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from qb_cluster.contracts import Bits
from qb_cluster.errors import PlugInError
from qb_cluster.quantization import affine, weights
from qb_cluster.selfcheck import (
    Check,
    measures,
    native,
    observing,
    print_checks,
    quantizers,
    run_selfcheck,
)
from qb_cluster.selfcheck.native import check_backend

HELD = Check("weights w8", "a law", 1.0, 1.05, 0.1)


@pytest.fixture
def numpy_backends(monkeypatch):
    """The backends in numpy_backend.py can be named, and their layers are the oracle's."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    oracles = {"object": "numpy_backend", "tflite": "no_such_plug_in.oracle"}
    monkeypatch.setattr(native, "_ORACLES", oracles)


def checked(factory):
    """Checks of the kinds of layer that numpy_backend.py has."""
    checks = check_backend(f"numpy_backend:{factory}")
    return [check for check in checks if "has no model of this kind" not in check.note]


def test_a_kind_of_layer_that_has_no_oracle_is_told(numpy_backends):
    checks = list(check_backend("numpy_backend:right"))
    told = [check.subject for check in checks if "has no model of this kind" in check.note]
    kinds = ("conv_transpose", "embedding", "recurrent", "attention")
    assert told == [f"numpy_backend:right, {kind}" for kind in kinds]


def misses(checks):
    return [check for check in checks if not check.ok]


def printed(checks):
    stream = io.StringIO()
    verdict = print_checks(checks, Console(file=stream, width=200))
    return verdict, stream.getvalue()


def test_every_law_holds_of_the_reference_arithmetic_observers_and_metrics():
    checks = list(run_selfcheck([]))
    assert misses(checks) == []
    assert all(check.expected is not None for check in checks)
    subjects = " ".join(check.subject for check in checks)
    for part in (
        *(
            "narrow",
            "full",
            "affine",
            "signed scale",
            "groups",
            "fp16",
            "bf16",
            "e4m3",
            "e5m2",
            "matrix product",
        ),
        *("minmax", "moving_average", "percentile", "observer mse", "entropy"),
        *("SQNR", "cosine", "max abs", "top-1", "accuracy", "McNemar", "interval"),
    ):
        assert part in subjects


def one_bit_less(quantize):
    return lambda values, scheme, bits: quantize(values, scheme, Bits(max(2, bits.weight - 1)))


def test_a_quantizer_that_loses_a_bit_is_found(monkeypatch):
    worse = one_bit_less(weights.quantize_dequantize_weights)
    monkeypatch.setattr(quantizers, "quantize_dequantize_weights", worse)
    assert len(misses(quantizers.check_quantizers())) > 10


def test_a_quantizer_that_rounds_down_is_found(monkeypatch):
    def floored(values, scale, zero_point, bits):
        return affine.quantize_dequantize_affine(values - scale / 2, scale, zero_point, bits)

    monkeypatch.setattr(quantizers, "quantize_dequantize_affine", floored)
    assert [check.subject for check in misses(quantizers.check_quantizers())] == [
        "activations a8 affine"
    ]


def test_an_observer_that_forgets_the_largest_value_is_found(monkeypatch):
    make = observing.make_observer

    def forgetful(calibration, bits, *, symmetric):
        observer = make(calibration, bits, symmetric=symmetric)
        update = observer.update
        observer.update = lambda values: update(np.minimum(values, 3.0))
        return observer

    monkeypatch.setattr(observing, "make_observer", forgetful)
    found = {check.subject.split()[1] for check in misses(observing.check_observers())}
    assert found >= {"minmax", "percentile", "moving_average", "mse"}


def test_an_sqnr_that_is_no_ratio_of_powers_is_found(monkeypatch):
    deviation = measures.deviation

    def doubled(reference, outputs):
        found = deviation(reference, outputs)
        return dataclasses.replace(found, sqnr_db=found.sqnr_db * 2)

    monkeypatch.setattr(measures, "deviation", doubled)
    assert {check.subject for check in misses(measures.check_metrics())} == {"metric SQNR"}


def test_an_interval_that_is_too_short_is_found(monkeypatch):
    interval = measures.proportion_difference
    monkeypatch.setattr(
        measures,
        "proportion_difference",
        lambda worse, better, n, confidence: interval(worse, better, n, confidence - 0.05),
    )
    assert {check.subject for check in misses(measures.check_metrics())} == {
        "interval of a paired difference"
    }


def test_a_backend_that_computes_as_numpy_does_passes(numpy_backends):
    checks = checked("right")
    assert misses(checks) == []
    native_cases = [case for case in native._CASES if case.execution == "native"]
    assert len(checks) == 2 * (1 + len(native_cases))  # float and all that is native, two layers
    assert max(abs(check.got - check.expected) for check in checks) < 0.01


@pytest.mark.parametrize(
    ("factory", "missed"),
    [("wrong_float", ["linear float", "conv float"]), ("wrong_kernel", ["linear weight_only w8"])],
)
def test_a_backend_with_a_wrong_kernel_is_found(numpy_backends, factory, missed):
    found = [check.subject.partition(", ")[2] for check in misses(checked(factory))]
    assert set(missed) <= set(found)


def test_a_backend_that_leaves_a_linear_layer_float_is_found(numpy_backends):
    found = {check.subject.split()[1] for check in misses(checked("not_applied"))}
    assert found == {"linear"}


def test_a_backend_that_leaves_convolutions_float_has_its_caveat_shown(numpy_backends):
    unchecked = [check for check in checked("not_applied") if check.expected is None]
    assert {check.note for check in unchecked} == {"the weight stays float: a caveat"}


@pytest.mark.parametrize(
    ("factory", "count", "said"),
    [
        ("broken", 1, "RuntimeError: no backend today"),
        ("broken_converter", 2, "RuntimeError: no converter today"),
        ("broken_quantizer", 6, "RuntimeError: no quantizer today"),
    ],
)
def test_a_backend_that_raises_is_a_miss_that_says_what(numpy_backends, factory, count, said):
    found = misses(checked(factory))
    assert len(found) == count
    assert all(said in check.note and math.isnan(check.got) for check in found)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("absent", "not installed: no_such_framework"),
        ("of_another_kind", "no oracle models of the kind it takes: pt2"),
        ("without_oracle", "'no_such_plug_in.oracle', which is not installed"),
    ],
)
def test_a_backend_that_cannot_be_checked_is_reported_so(numpy_backends, factory, said):
    (check,) = checked(factory)
    assert check.ok
    assert said in check.note
    assert "0 laws hold, 0 missed, 1 not checked" in printed([check])[1]


def test_a_backend_that_nobody_knows_is_refused_at_once():
    with pytest.raises(PlugInError, match="unknown backend 'pytroch'; did you mean 'pytorch'"):
        next(run_selfcheck(["pytroch"]))


def test_the_table_is_green_when_all_holds():
    verdict, text = printed([HELD])
    assert verdict
    for part in ("weights w8", "a law", "1.05", "±0.1", "ok", "1 laws hold, 0 missed"):
        assert part in text


@pytest.mark.parametrize("got", [1.2, 0.8, math.nan, None])
def test_one_miss_is_enough(got):
    verdict, text = printed([HELD, dataclasses.replace(HELD, got=got)])
    assert not verdict
    assert "MISS" in text
    assert "1 laws hold, 1 missed" in text


def test_names_with_brackets_are_printed_as_they_are():
    assert "weights [w8]" in printed([dataclasses.replace(HELD, subject="weights [w8]")])[1]
