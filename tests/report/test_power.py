"""What a plan says before a run: figures that a reader can check with a pocket calculator."""

import math

import pytest
from stored_cells import finish, make_cell, quality

from qb_cluster.contracts import Ref
from qb_cluster.report.power import Size, discordance_seen, power_lines, size_of
from qb_cluster.spec import load_spec
from qb_cluster.store.run_folder import RunFolder

SPEC = """
sweep: trial
models: digits-cnn
datasets: digits
schemes: static
bits: w8a8
backends: pytorch
"""


@pytest.fixture
def told(tmp_path):
    """A function that gives the lines of a spec with more keys."""

    def lines(more="", size=None, seen=None, judged=1):
        path = tmp_path / "sweep.yaml"
        path.write_text(SPEC + more, encoding="utf-8")
        sizes = {"digits": size or Size(797, 1_797)}
        return list(power_lines(load_spec(path), judged, sizes, seen or {}))

    return lines


def row(lines, discordant):
    table = "\n".join(lines).splitlines()
    return next(" ".join(line.split()) for line in table if f" {discordant} %" in line)


def test_a_plan_says_the_smallest_change_that_n_shows_and_the_n_that_the_tolerance_needs(told):
    lines = told()
    assert "digits: n = 797 of 1,797" in lines
    shown = 2.8016 * math.sqrt(0.02 / 797)
    needed = math.ceil(7.8489 * 0.02 / 0.01**2)
    assert row(lines, 2) == f"digits 2 % {100 * shown:.2f} pt {needed:,}"


def test_no_change_is_shown_that_is_larger_than_what_flips(told):
    assert " none " in row(told(size=Size(200, 200)), 1)


def test_a_tolerance_needs_the_examples_of_no_flip_at_all_however_few_do_flip(told):
    line = row(told(seen={("digits-cnn", "digits"): 0.0005}), 0.05)
    assert line.endswith(f" {math.ceil(math.log(0.05) / math.log(0.99))}")
    assert "digits-cnn, earlier runs" in line


def test_holm_says_below_which_n_nothing_holds(told):
    *_, last = told(judged=46)
    fewest = math.ceil(math.log(0.05 / 46) / math.log(0.99))
    assert last == (
        f"No first verdict 'within' with Holm over 46 cells below n = {fewest}, even if no "
        "example flips."
    )
    assert 0.99**fewest <= 0.05 / 46 < 0.99 ** (fewest - 1)
    *_, last = told("measure: {adjust: none}", judged=46)
    assert "Holm" not in last


def test_the_tolerance_and_the_confidence_of_the_sweep_count(told):
    lines = told("measure: {tolerance: 2 pt, confidence: 0.9}")
    z = 1.6449 + 0.8416
    assert row(lines, 5).endswith(f" {math.ceil(0.05 * (z / 0.02) ** 2)}")
    assert "n to show 2 pt" in "\n".join(lines)


def test_without_a_tolerance_there_is_no_n_that_it_needs(told):
    text = "\n".join(told("measure: {tolerance: null}"))
    assert "n to show" not in text
    assert "first verdict" not in text


def test_a_metric_of_your_own_promises_no_figure(told):
    assert told("measure: {metric: 'math:hypot'}") == [
        "What n can show of math:hypot depends on its spread: known after a run (qb report)."
    ]


def test_a_dataset_that_cannot_be_loaded_here_leaves_n_open_and_says_why(told):
    size = size_of(Ref("gone", "no_such_module:data"), None)
    assert size.examples is None
    lines = told(size=size)
    assert any(line.startswith("digits: n unknown: ") for line in lines)
    assert " n unknown " in row(lines, 5)


def test_examples_at_most_are_counted(told):
    assert size_of(Ref("digits", "digits"), 100) == Size(100, 1_797)


def test_earlier_runs_tell_how_many_examples_flip_and_other_folders_are_passed_over(tmp_path):
    cells = [make_cell("static", f"w{bits}a8", model="net") for bits in (8, 7, 6)]
    flips = [(1, 1), (4, 2), (30, 0)]
    with RunFolder.open(
        tmp_path / "earlier", sweep="digits", spec_text="", spec_digest="spec"
    ) as run:
        run.commit_cells(
            [
                finish(cell, quality(cell, n=200, right=150, worse=worse, better=better))
                for cell, (worse, better) in zip(cells, flips, strict=True)
            ]
        )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("none of ours", encoding="utf-8")
    assert discordance_seen(tmp_path) == {("net", "digits"): 6 / 200}
    assert discordance_seen(tmp_path / "nowhere") == {}
