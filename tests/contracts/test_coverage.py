"""What a scheme covers, and when a cell quantized too little of it."""

from dataclasses import replace

import pytest
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts import Scheme, fate
from qb_cluster.contracts.coverage import LAYER_KINDS, coverage, covered_share, partial_reason
from qb_cluster.quantization import schemes

STATIC, WEIGHTS = make_cell("static", "w8a8"), make_cell("weight_only", "w8")


def test_weights_are_added_up_by_kind_of_layer():
    found = coverage([("conv", 10, True), ("embedding", 7, False), ("conv", 5, False)])
    assert found == {"conv": (10, 15), "embedding": (0, 7)}
    assert covered_share(found) == 10 / 22
    assert covered_share({}) is None


@pytest.mark.parametrize(
    ("covered", "integer", "reason"),
    [
        (1.0, 1.0, ""),
        (0.9, 0.9, ""),
        (None, None, ""),
        (0.899, None, "89 % of the weights quantized"),
        (0.5, 0.1, "50 % of the weights quantized"),
        (1.0, 0.27, "27 % of MACs in integers"),
    ],
)
def test_less_than_nine_tenths_is_a_part(covered, integer, reason):
    assert partial_reason(covered, integer) == reason


def test_a_cell_that_quantized_a_part_is_partial_and_says_which():
    stages = quality(STATIC, covered_share=0.27), latency(STATIC)
    assert fate(STATIC, stages) == ("partial", "27 % of the weights quantized")
    assert fate(STATIC, [quality(STATIC), latency(STATIC)]) == ("ok", None)


def test_products_count_where_they_are_meant_to_run_in_integers():
    few = {"integer_layer_mac_share": 0.1}
    assert fate(STATIC, [quality(STATIC, **few)]) == ("partial", "10 % of MACs in integers")
    assert fate(WEIGHTS, [quality(WEIGHTS, **few)]) == ("ok", None)
    simulated = replace(STATIC, execution="simulated")
    assert fate(simulated, [quality(simulated, **few)]) == ("ok", None)


def test_all_parameters_count_where_a_backend_does_not_tell_what_is_covered():
    unknown = {"covered_share": None, "quantized_share": 0.4}
    assert fate(WEIGHTS, [quality(WEIGHTS, **unknown)])[0] == "partial"


def test_a_stage_that_failed_decides_however_little_was_quantized():
    stages = quality(STATIC, covered_share=0.1), failed(STATIC, "oom", "full", stage="latency")
    assert fate(STATIC, stages) == ("oom", "full")


def test_a_baseline_is_never_partial():
    baseline = make_cell(None)
    assert fate(baseline, [quality(baseline, quantized_share=0.0)]) == ("ok", None)


def test_a_scheme_covers_all_kinds_of_layers_unless_it_says():
    assert schemes.weight_only().weights == LAYER_KINDS
    assert schemes.static(weights=["linear"]).weights == ("linear",)
    assert schemes.static(activations="layers").scope == "layers"
    assert schemes.dynamic().scope is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: schemes.weight_only(weights=["dense"]),
            "'dense' is no kind of layer",
        ),
        (lambda: schemes.static(weights=[]), "name one kind of layer at least"),
        (lambda: schemes.static(activations="outputs"), "'outputs' is none of inputs, layers, all"),
        (lambda: Scheme("mine", scope="inputs"), "mine leaves all activations float"),
    ],
)
def test_what_no_scheme_can_cover_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
