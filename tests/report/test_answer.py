import pytest
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts import Calibration, Device, Measure, Ref
from qb_cluster.contracts.judgement import Judgement
from qb_cluster.report.analysis import analyse
from qb_cluster.report.answer import NAME, answer, best, counted, kind
from qb_cluster.store.reading import read_run
from qb_cluster.store.run_folder import RunFolder

GOOD, BAD, UNCLEAR = (0, 0), (300, 0), (20, 0)
"""Flips of 2,000 examples that show a loss within 1 pt, beyond it, and neither."""


@pytest.fixture
def answered(store):
    """A function that answers from cells with their outcomes."""

    def give(*ended, adjust="none", planned_cells=None):
        path = store(*ended, planned_cells=planned_cells)
        found = analyse(read_run(path), Judgement(adjust=adjust))
        return answer(found, found.comparison)

    return give


def ran(scheme="static", bits="w8a8", flips=GOOD, *, n=2000, size=10_000, ns=5_000, **options):
    """A cell with so many flips, bytes and nanoseconds."""
    timing = options.pop("timing", {})
    cell = make_cell(scheme, bits, **options)
    worse, better = flips
    native = cell.execution == "native"
    stored = size if native else None
    found = quality(cell, n=n, right=n - 100, worse=worse, better=better, artifact_bytes=stored)
    return (cell, found, latency(cell, median_ns=ns, **timing)) if native and ns else (cell, found)


def floats(**options):
    cell = make_cell(None, **options)
    equal = {"ratio": 1.0, "speedup_verdict": "equivalent"}
    return cell, quality(cell, n=2000, right=1900), latency(cell, median_ns=16_000, **equal)


def headline(given):
    [group] = given.groups
    return group.headline


def test_the_headline_counts_what_holds_and_names_the_fastest_and_the_smallest(answered):
    given = answered(
        floats(),
        ran(bits="w8a8", size=9_000, ns=4_000),
        ran(bits="w4a8", size=5_000, ns=6_000),
        ran(bits="w2a8", flips=BAD, size=1_000, ns=1_000),
    )
    assert headline(given) == (
        "digits-cnn on digits, n = 2,000 of 6,000: 2 of 3 configurations hold 1 pt; "
        "fastest: tflite static w8a8, 3.2× faster; smallest: tflite static w4a8, 8.0× smaller"
    )


@pytest.mark.parametrize("flips", [BAD, UNCLEAR])
def test_nothing_but_what_is_within_is_fastest_or_smallest(answered, flips):
    given = answered(floats(), ran(flips=flips, size=1, ns=1), ran(bits="w4a8"))
    [group] = given.groups
    assert (group.fastest["bits"], group.smallest["bits"]) == ("w4a8", "w4a8")


def test_a_scheme_that_is_called_float_is_judged_like_any_other(answered):
    given = answered(floats(), ran("float", size=9_000), ran("float", "w4a8", BAD))
    [group] = given.groups
    assert [(row[NAME], kind(row)) for row in group.rows] == [
        ("tflite float w8a8", "within"),
        ("tflite float", "float"),
        ("tflite float w4a8", "worse"),
    ]
    assert "1 of 2 configurations hold 1 pt" in group.headline


def test_a_float_model_a_part_and_what_failed_are_neither(answered):
    part = make_cell("static", "w3a8")
    late = make_cell("static", "w2a8")
    end = failed(late, "timeout", "no end", stage="latency")
    given = answered(
        floats(),
        ran(size=50_000, ns=20_000),
        (part, quality(part, n=2000, right=1900, covered_share=0.5, artifact_bytes=1)),
        (late, quality(late, n=2000, right=1900, worse=0, better=0, artifact_bytes=1), end),
    )
    [group] = given.groups
    assert (group.fastest["bits"], group.smallest["bits"]) == ("w8a8", "w8a8")
    assert "1 of 1 configuration holds 1 pt" in group.headline


def test_what_is_larger_or_slower_than_float_says_so(answered):
    slow = {"ratio": 0.5, "speedup_verdict": "slower"}
    said = headline(answered(floats(), ran(size=50_000, ns=20_000, timing=slow)))
    assert "fastest: tflite static w8a8, 2.0× slower" in said
    assert "smallest: tflite static w8a8, 1.2× larger" in said


@pytest.mark.parametrize("verdict", ["undecided", "equivalent"])
def test_a_fastest_that_is_not_told_from_float_is_not_called_faster(answered, verdict):
    said = headline(answered(floats(), ran(timing={"speedup_verdict": verdict})))
    assert "fastest: tflite static w8a8, not shown to be faster than float" in said


def test_where_nothing_was_timed_nothing_is_fastest(answered):
    said = headline(answered(floats(), ran(ns=None)))
    assert "fastest" not in said
    assert "smallest: tflite static w8a8, 4.0× smaller" in said


def test_simulated_cells_count_and_are_neither_fastest_nor_smallest(answered):
    said = headline(answered(floats(), ran(execution="simulated")))
    assert said == "digits-cnn on digits, n = 2,000 of 6,000: 1 of 1 configuration holds 1 pt"


def test_where_nothing_holds_the_headline_says_why(answered):
    given = answered(floats(), ran(flips=BAD), ran(bits="w4a8", flips=UNCLEAR))
    assert headline(given).endswith(
        ": no configuration is shown to hold 1 pt (1 undecided, 1 worse)"
    )


def test_where_no_tolerance_is_set_the_headline_says_so(answered):
    measure = Measure(metric=Ref("psnr", "my.metrics:psnr"))
    cell = make_cell(measure=measure)
    found = quality(cell, flips_worse=None, flips_better=None, delta=-1.0)
    assert headline(answered((cell, found))).endswith("no verdict: no tolerance is set for psnr")


def test_baselines_alone_are_called_so(answered):
    assert headline(answered(floats())).endswith(": only float baselines so far")


def test_where_all_failed_the_headline_counts_how(answered):
    cells = [make_cell("static", bits) for bits in ("w8a8", "w4a8", "w2a8")]
    ends = [(c, failed(c, s, "no")) for c, s in zip(cells, ("oom", "oom", "crashed"), strict=True)]
    given = answered(floats(), *ends)
    assert headline(given).endswith(": no verdict (1 crashed, 2 oom)")


def test_parts_alone_are_no_verdict(answered):
    cell = make_cell()
    given = answered(floats(), (cell, quality(cell, covered_share=0.5)))
    assert headline(given).endswith(": no verdict (1 partial)")


def test_other_tolerances_within_a_group_are_not_given_one_name(store):
    path = store(ran(), ran("dynamic"))
    rules = [{"when": {"scheme": ["dynamic"]}, "tolerance": "2 pt"}]
    judgement = Judgement.from_json(Judgement().as_json() | {"rules": rules})
    found = analyse(read_run(path), judgement)
    assert "2 of 2 configurations hold their tolerance" in headline(answer(found, found.comparison))


def test_models_datasets_and_devices_have_an_answer_each(answered):
    given = answered(
        ran(),
        ran(model="digits-mlp"),
        ran(dataset="mnist"),
        ran(device=Device("cpu", 4)),
        ran(device=Device("pi", 1)),
    )
    begins = [group.headline.partition(",")[0] for group in given.groups]
    assert begins == [
        "digits-cnn on digits (cpu[threads=1])",
        "digits-mlp on digits (cpu[threads=1])",
        "digits-cnn on digits (cpu[threads=4])",
        "digits-cnn on digits (pi)",
        "digits-cnn on mnist (cpu[threads=1])",
    ]


def test_a_board_alone_is_named(answered):
    assert "digits-cnn on digits (pi)," in headline(answered(ran(device=Device("pi", 1))))


@pytest.mark.parametrize(
    ("counts", "total", "said"),
    [
        ([797], 1797, "n = 797 of 1,797:"),
        ([1797], 1797, "n = 1,797:"),
        ([797], None, "n = 797:"),
        ([500, 797], 1797, "n = 500–797 of 1,797:"),
    ],
)
def test_the_headline_says_on_how_many_examples_of_how_many(answered, counts, total, said):
    ended = []
    for number, n in enumerate(counts):
        cell = make_cell("static", f"w{8 - number}a8")
        ended.append((cell, quality(cell, n=n, right=n - 9, dataset_examples=total)))
    assert f"digits-cnn on digits, {said}" in headline(answered(*ended))


def names(given):
    return sorted(row[NAME] for group in given.groups for row in group.rows)


def test_a_configuration_is_named_by_backend_scheme_and_bits(answered):
    assert names(answered(floats(), ran(), ran("weight_only", "w4"))) == [
        "tflite float",
        "tflite static w8a8",
        "tflite weight_only w4",
    ]


def test_names_that_would_collide_are_told_apart_by_what_differs(answered):
    mse = Calibration(observer="mse", samples=32)
    given = answered(ran(), ran(seed=1), ran(calibration=mse), ran(bits="w4a8"))
    assert names(given) == [
        "tflite static w4a8",
        "tflite static w8a8 minmax",
        "tflite static w8a8 minmax[seed=1]",
        "tflite static w8a8 mse[samples=32]",
    ]


def test_a_native_cell_and_its_simulation_are_told_apart(answered):
    pair = [ran("weight_only", "w4", execution=how) for how in ("native", "simulated")]
    assert names(answered(*pair)) == [
        "tflite weight_only w4 native",
        "tflite weight_only w4 simulated",
    ]


def test_batches_set_names_apart_and_nothing_else_does_where_it_is_equal(answered):
    cells = [make_cell("static", "w8a8", seed=seed) for seed in (0, 1)]
    same = {"calibration_seed": 0}
    ended = [(c, quality(c, batch_size=b, **same)) for c, b in zip(cells, (1, 64), strict=True)]
    assert names(answered(*ended)) == ["tflite static w8a8 batch 1", "tflite static w8a8 batch 64"]


def test_rows_are_best_first(answered):
    part = make_cell("static", "w7a8")
    gone = make_cell("static", "w5a8")
    given = answered(
        (gone, failed(gone, "crashed", "no")),
        (part, quality(part, covered_share=0.5)),
        ran("dynamic", "w2a8", flips=BAD, ns=1),
        floats(),
        ran("dynamic", "w4a8", flips=UNCLEAR, ns=1),
        ran(bits="w8a8", ns=6_000),
        ran(bits="w4a8", ns=5_000, size=9_000),
        ran(bits="w3a8", ns=5_000, size=8_000),
        ran("weight_only", "w8", ns=None),
    )
    [group] = given.groups
    assert [(kind(row), row["bits"]) for row in group.rows] == [
        ("within", "w3a8"),
        ("within", "w4a8"),
        ("within", "w8a8"),
        ("within", "w8"),
        ("undecided", "w4a8"),
        ("float", "f32"),
        ("worse", "w2a8"),
        ("partial", "w7a8"),
        ("crashed", "w5a8"),
    ]


def test_the_best_few_are_the_front_first_and_what_is_worse_last(answered):
    given = answered(
        ran(bits="w8a8", ns=4_000, size=9_000),
        ran(bits="w7a8", ns=4_000, size=9_500),  # beaten
        ran(bits="w4a8", ns=9_000, size=5_000),
        ran(bits="w2a8", flips=BAD, ns=100, size=100),  # on the front, and nobody's choice
    )
    [group] = given.groups
    assert [row["bits"] for row in best(group, 2)] == ["w8a8", "w4a8"]
    assert [row["bits"] for row in best(group, 3)] == ["w8a8", "w7a8", "w4a8"]
    assert best(group, 9) == list(group.rows)


def test_rows_are_counted_by_what_they_came_to(answered):
    given = answered(floats(), ran(), ran("dynamic", flips=BAD), (make_cell(bits="w2a8"),))
    assert counted(given.groups[0].rows) == "1 within, 1 float, 1 worse, 1 unsupported"


def test_the_title_says_what_the_verdicts_rest_on(answered):
    assert answered(ran()).title == "digits · accuracy · verdicts at 95 %"
    two = answered(ran(), ran("dynamic"), adjust="holm")
    assert two.title == "digits · accuracy · verdicts at 95 %, Holm over 2 cells"


def test_a_title_without_verdicts_claims_none(answered):
    assert answered(floats(), adjust="holm").title == "digits · accuracy"


def test_notes_say_what_is_missing_and_how_many_examples_would_decide(answered):
    given = answered(floats(), ran(flips=UNCLEAR), planned_cells=5)
    [unfinished] = [note for note in given.notes if "Unfinished" in note]
    assert "3 of 5 planned cells have no row yet" in unfinished


def test_what_is_missing_is_of_the_spec_whatever_rows_earlier_ones_left(store):
    planned, earlier = ran(), ran(bits="w4a8")
    path = store(floats(), planned, earlier)
    options = {"sweep": "digits", "spec_text": "", "spec_digest": "later", "planned_cells": 4}
    with RunFolder.open(path, **options) as folder:
        folder.count_only([planned[0].cell_id])
    found = analyse(read_run(path), Judgement())
    given = answer(found, found.comparison)
    assert "Unfinished: 3 of 4 planned cells have no row yet; run `qb run` again." in given.notes


def test_the_examples_that_would_decide_are_rounded_up(answered):
    given = answered(ran(flips=(20, 4)))
    [row], [note] = given.groups[0].rows, given.notes
    assert row["examples_needed"] > 2000
    told = int(note.partition("about ")[2].partition(" ")[0].replace(",", ""))
    assert row["examples_needed"] <= told < 1.1 * row["examples_needed"]


def test_a_float_model_told_from_itself_casts_doubt_on_speed_ups(answered):
    cell = make_cell(None)
    biased = latency(cell, ratio=1.1, speedup_low=1.05)
    [note] = answered((cell, quality(cell), biased)).notes
    assert note == (
        "timing: float differs from itself by ±14 % (digits-cnn, tflite); doubt speed-ups as small"
    )


def test_cells_that_nobody_measured_are_in_their_models_group(answered):
    given = answered(floats(), (make_cell(execution=None, reason="no kernel"),))
    [group] = given.groups
    assert [kind(row) for row in group.rows] == ["float", "unsupported"]


def test_what_a_float_models_row_notes_is_said_once_with_its_backends(answered):
    doubt, other = "at chance: check the weights", "2 of 4 weights stay float"
    cells = [make_cell(None, backend=backend) for backend in ("tflite", "pytorch")]
    quantized = make_cell()
    given = answered(
        *((cell, quality(cell, notes=[doubt])) for cell in cells),
        (quantized, quality(quantized, notes=[other])),
    )
    assert f"float digits-cnn on digits, pytorch, tflite: {doubt}" in given.notes
    assert not any(other in note for note in given.notes)
