import pandas as pd
import pytest
from stored_cells import failed, latency, make_cell, quality, results_frame

from qb_cluster.contracts import STATUSES, Calibration, Device, Measure, Ref
from qb_cluster.contracts.judgement import EVERY_CELL, Judgement, ToleranceRule
from qb_cluster.contracts.match import Match
from qb_cluster.contracts.tolerance import Tolerance
from qb_cluster.evaluation.noninferiority import paired_p
from qb_cluster.report.records import records
from qb_cluster.report.verdicts import COLUMNS, judge

PSNR = Measure(metric=Ref("psnr", "my.metrics:psnr"))


def judged(*ended, **judgement):
    return records(judge(results_frame(*ended), Judgement(**judgement)))


def ran(scheme="static", bits="w8a8", *, options=None, **found):
    """A cell that ran, with what it found."""
    cell = make_cell(scheme, bits, **(options or {}))
    return cell, quality(cell, **found)


def psnr(low=None, high=None, *, delta=-1.0, value=33.0, baseline_value=34.0, **options):
    """A cell with a metric that is one number, with a bootstrap interval or without one."""
    flips = dict.fromkeys(("flips_worse", "flips_better", "p_value"))
    found = {"value": value, "baseline_value": baseline_value, "delta": delta}
    interval = {"delta_low": low, "delta_high": high}
    return ran(options={"measure": PSNR} | options, **flips | found | interval)


def accept(text, **when):
    return ToleranceRule(Match(when), Tolerance.parse(text) if text else None)


@pytest.mark.parametrize(
    ("n", "worse", "better", "verdict"),
    [
        (2000, 2, 0, "within"),
        (2000, 0, 60, "within"),
        (2000, 90, 5, "worse"),
        (360, 4, 1, "undecided"),
        (2000, 25, 1, "undecided"),
        (1, 1, 0, "undecided"),
    ],
)
def test_a_loss_is_within_the_tolerance_or_worse_where_that_is_shown(n, worse, better, verdict):
    [row] = judged(ran(n=n, right=round(0.9 * n), worse=worse, better=better))
    assert row["quality_verdict"] == verdict
    assert row["no_verdict_reason"] is None
    assert row["tolerance"] == pytest.approx(0.01)


def test_p_is_the_exact_one_of_the_verdicts_test():
    [row] = judged(ran(n=2000, right=1900, worse=2, better=0), adjust="none")
    assert row["p_verdict"] == paired_p(2, 0, 2000, 0.01, "within", 0.05)
    assert row["p_adjusted"] == row["p_verdict"]


def test_without_a_flip_the_number_of_examples_decides():
    assert judged(ran(n=200, right=190, worse=0, better=0))[0]["quality_verdict"] == "undecided"
    assert judged(ran(n=500, right=490, worse=0, better=0))[0]["quality_verdict"] == "within"


def test_what_one_cell_shows_two_do_not_unless_nothing_is_adjusted():
    cells = [ran(bits=bits, worse=0, better=0) for bits in ("w8a8", "w4a8")]  # p is 0.027
    assert judged(cells[0])[0]["quality_verdict"] == "within"
    assert [row["quality_verdict"] for row in judged(*cells)] == ["undecided"] * 2
    alone = judged(*cells, adjust="none")
    assert [row["quality_verdict"] for row in alone] == ["within"] * 2


def holm(p_values):
    """Holm's adjustment as a loop."""
    adjusted, largest = {}, 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return [adjusted[at] for at in range(len(p_values))]


def test_adjusted_p_values_are_holms():
    counts = [(0, 0), (2, 3), (4, 1), (9, 1), (30, 2), (60, 1), (4, 1)]
    cells = [
        ran(bits=f"w{bits}a8", worse=worse, better=better)
        for bits, (worse, better) in enumerate(counts, start=2)
    ]
    rows = judged(*cells)
    assert [row["p_adjusted"] for row in rows] == pytest.approx(
        holm([row["p_verdict"] for row in rows])
    )
    assert rows[0]["p_adjusted"] > rows[0]["p_verdict"]


def test_cells_without_a_verdict_do_not_count_in_the_adjustment():
    one = ran(worse=0, better=0)
    others = [
        ran(bits="w4a8", worse=0, better=0, covered_share=0.5),
        (make_cell("dynamic"), failed(make_cell("dynamic"), "failed", "no")),
        (make_cell(None), quality(make_cell(None))),
    ]
    assert judged(one, *others)[0]["p_adjusted"] == judged(one)[0]["p_adjusted"]


def test_a_verdict_follows_the_adjusted_p_at_the_cells_own_confidence():
    options = {"measure": Measure(confidence=0.99)}
    assert judged(ran(worse=0, better=0))[0]["quality_verdict"] == "within"
    sure = judged(ran(worse=0, better=0, options=options))
    assert sure[0]["quality_verdict"] == "undecided"


@pytest.mark.parametrize(
    ("when", "options"),
    [
        ({"model": ("digits-cnn",)}, {"model": "digits-cnn"}),
        ({"scheme": ("static*",)}, {}),
        ({"bits": ("w8a8",)}, {}),
        ({"backend": ("tflite", "pytorch")}, {}),
        ({"device": ("cpu[threads=2]",)}, {"device": Device("cpu", 2)}),
        ({"device": ("cpu",)}, {"device": Device("cpu", 1)}),
        ({"device": ("pi",)}, {"device": Device("pi", 4)}),
        ({"execution": ("simulated",)}, {"execution": "simulated"}),
        ({"calibration": ("minmax[seed=1]",)}, {"seed": 1}),
        (
            {"calibration": ("percentile[99.9]",)},
            {"calibration": Calibration(observer="percentile", percentile=99.9)},
        ),
        ({"dataset": ("digits",), "model": ("*cnn",)}, {}),
    ],
)
def test_a_rule_gives_the_cells_that_it_names_their_own_tolerance(when, options):
    others = {
        "model": "other",
        "dataset": "mnist",
        "backend": "onnxruntime",
        "device": Device("cpu", 4),
        "seed": 7,
    }
    rules = (accept("3 pt", **when),)
    named = ran(options=options)
    other = ran("dynamic", "w4a8", options=others)
    assert [row["tolerance"] for row in judged(named, other, rules=rules)] == [0.03, 0.01]


def test_the_last_rule_that_matches_wins_and_null_takes_the_verdict_away():
    rules = (accept("3 pt"), accept("2 pt", bits=("w4a8",)), accept(None, bits=("w2a8",)))
    rows = judged(*(ran(bits=bits) for bits in ("w8a8", "w4a8", "w2a8")), rules=rules)
    assert [row["tolerance"] for row in rows] == [0.03, 0.02, None]
    assert rows[2]["quality_verdict"] is None
    assert rows[2]["no_verdict_reason"] == "no tolerance is set for accuracy"


@pytest.mark.parametrize(
    ("scheme", "found", "reason"),
    [
        ("static", {"covered_share": 0.899}, "89 % of the weights quantized"),
        ("weight_only", {"covered_share": 0.0}, "0 % of the weights quantized"),
        ("static", {"covered_share": 0.9}, None),
        ("dynamic", {"integer_layer_mac_share": 0.5}, "50 % of MACs in integers"),
        # Where a backend does not tell what is covered, all parameters count.
        (
            "static",
            {"covered_share": None, "quantized_share": 0.5},
            "50 % of the weights quantized",
        ),
        # Attention: the products of two activations stay float in dynamic kernels.
        ("dynamic", {"integer_mac_share": 0.858, "integer_layer_mac_share": 1.0}, None),
        ("static", {"integer_mac_share": None, "integer_layer_mac_share": None}, None),
        # Its activations are meant to stay float.
        ("weight_only", {"integer_mac_share": 0.0, "integer_layer_mac_share": 0.0}, None),
        ("static", {"covered_share": None, "quantized_share": None}, None),
    ],
)
def test_a_cell_that_quantized_only_a_part_gets_no_verdict(scheme, found, reason):
    bits = "w8" if scheme == "weight_only" else "w8a8"
    [row] = judged(ran(scheme, bits, n=2000, right=1900, worse=2, better=0, **found))
    assert row["no_verdict_reason"] == reason
    assert row["quality_verdict"] == (None if reason else "within")
    assert (row["p_verdict"] is None) == (reason is not None)


def test_a_simulated_cell_is_never_partial_by_its_products():
    simulated = {"execution": "simulated"}
    [row] = judged(ran(options=simulated, integer_layer_mac_share=0.0, integer_mac_share=0.0))
    assert row["quality_verdict"] == "undecided"
    [row] = judged(ran(options=simulated, covered_share=0.1))
    assert row["no_verdict_reason"] == "10 % of the weights quantized"


@pytest.mark.parametrize("status", STATUSES[2:])
def test_a_cell_that_is_not_ok_says_its_status_in_place_of_a_verdict(status):
    cell = make_cell()
    stages = quality(cell, covered_share=0.1), failed(cell, status, "no", stage="latency")
    [row] = judged((cell, *stages))
    assert row["no_verdict_reason"] == status
    assert [row[name] for name in COLUMNS if name != "no_verdict_reason"] == [None] * 5


def test_a_cell_that_no_backend_can_run_says_so():
    [row] = judged((make_cell(execution=None, reason="no kernel"),))
    assert row["no_verdict_reason"] == "unsupported"


def test_a_baseline_has_no_verdict_and_needs_no_reason():
    cell = make_cell(None)
    [row] = judged((cell, quality(cell, covered_share=0.0), latency(cell)))
    assert row == dict.fromkeys(COLUMNS)


def test_a_cell_without_a_change_from_float_says_so():
    [row] = judged(ran(delta=None))
    assert row["no_verdict_reason"] == "no change from float is known"


def test_a_metric_of_ones_own_has_no_verdict_unless_a_tolerance_is_set():
    [row] = judged(psnr(-1.2, -0.8))
    assert row["quality_verdict"] is None
    assert row["no_verdict_reason"] == "no tolerance is set for psnr"
    [row] = judged(psnr(-1.2, -0.8), rules=(accept("1.5"),))
    assert (row["quality_verdict"], row["tolerance"]) == ("within", 1.5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-1.2, -0.8, "within"), (-3.2, -2.8, "worse"), (-2.2, -0.8, "undecided")],
)
def test_a_metric_that_is_one_number_is_judged_by_its_interval(low, high, verdict):
    [row] = judged(psnr(low, high, delta=(low + high) / 2), rules=(accept("1.6"),))
    assert row["quality_verdict"] == verdict
    assert 0 < row["p_verdict"] < 0.5


@pytest.mark.parametrize("interval", [(None, None), (0.0, 0.0), (-1.0, -1.0)])
def test_where_nothing_tells_how_a_metric_varies_nothing_is_decided(interval):
    [row] = judged(psnr(*interval, delta=interval[0] or 0.0), rules=(accept("0.5"),))
    assert row["quality_verdict"] == "undecided"
    assert (row["p_verdict"], row["p_adjusted"], row["examples_needed"]) == (1.0, 1.0, None)


def test_percent_is_of_the_float_models_value():
    [row] = judged(psnr(-1.2, -0.8), rules=(accept("5 %"),))
    assert row["tolerance"] == pytest.approx(1.7)
    [row] = judged(psnr(-1.2, -0.8, baseline_value=0.0), rules=(accept("5 %"),))
    assert row["no_verdict_reason"] == "5 % of a float value of 0 is nothing"


@pytest.mark.parametrize(
    ("cell", "tolerance", "reason"),
    [
        (psnr(-1.2, -0.8), "5 pt", "5 pt is for shares, and psnr is 34 for float"),
        (ran(), "1", "a tolerance of 1 is all that accuracy can lose; write it in pt"),
        (ran(), "2.5", "a tolerance of 2.5 is all that accuracy can lose; write it in pt"),
    ],
)
def test_a_tolerance_that_means_nothing_for_a_metric_says_why(cell, tolerance, reason):
    [row] = judged(cell, rules=(accept(tolerance),))
    assert row["no_verdict_reason"] == reason
    assert row["quality_verdict"] is None


def test_examples_needed_are_more_than_there_were_and_null_where_it_is_decided():
    cells = [ran(bits="w8a8"), ran(bits="w2a8", worse=200, better=0)]
    undecided, worse = judged(*cells)
    assert undecided["examples_needed"] > 360
    assert (worse["quality_verdict"], worse["examples_needed"]) == ("worse", None)


def test_no_number_of_examples_decides_a_change_that_is_the_margin():
    [row] = judged(ran(n=300, right=290, worse=3, better=0))
    assert (row["quality_verdict"], row["examples_needed"]) == ("undecided", None)


def test_as_many_examples_as_needed_decide():
    [row] = judged(ran(n=400, right=390, worse=9, better=4), rules=(accept("2 pt"),))
    assert row["quality_verdict"] == "undecided"
    times = -(-row["examples_needed"] // 400) + 1  # the flips seen, as often again
    more = ran(n=400 * times, right=390 * times, worse=9 * times, better=4 * times)
    assert judged(more, rules=(accept("2 pt"),))[0]["quality_verdict"] == "within"


def test_rows_keep_their_order_and_their_index():
    results = results_frame(ran(), ran(bits="w4a8", worse=300, better=0))
    results.index = pd.Index([7, 3])
    found = judge(results, Judgement())
    assert found.index.tolist() == [7, 3]
    assert found["quality_verdict"].tolist() == ["undecided", "worse"]
    assert list(found.columns) == list(COLUMNS)


def test_no_rows_at_all_are_judged():
    found = judge(results_frame(ran()).iloc[:0], Judgement(rules=(accept("1 pt"),)))
    assert found.empty
    assert list(found.columns) == list(COLUMNS)
    assert EVERY_CELL.accepts("model", "any")
