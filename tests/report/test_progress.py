"""Progress of a run, on a terminal and elsewhere."""

import io
import re

import pytest
from rich.console import Console
from stored_cells import failed, finish, make_cell, never_run, quality

from qb_cluster.report.progress import RunProgress
from qb_cluster.report.reasons import grouped, reason_lines


class Shown:
    def __init__(self, *, is_terminal):
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=120, force_terminal=is_terminal)

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue())


def ok(number):
    cell = make_cell("static", f"w{number}a8")
    return finish(cell, quality(cell))


def bad(number):
    cell = make_cell("static", f"w{number}a8")
    return finish(cell, failed(cell, "failed", "no such layer [/x]"))


def test_elsewhere_than_on_a_terminal_every_phase_and_cell_is_a_line():
    shown = Shown(is_terminal=False)
    with RunProgress(shown.console) as progress:
        progress.phase("reading the spec")
        progress.begin(3, iter([1, 3]).__next__)
        progress.phase("loading models")
        progress.finished([ok(4), bad(5)])
        progress.phase("loading models")  # no news once there are rows
        progress.end(["3/3 done"])
    assert shown.text.splitlines() == [
        "reading the spec …",
        "loading models …",
        "    2 of 3  ok          digits-cnn digits tflite static w4a8",
        "    3 of 3  failed      digits-cnn digits tflite static w5a8: no such layer [/x]",
        "3/3 done",
    ]


def test_a_terminal_shows_the_phase_then_counts_and_the_time_that_is_left(monkeypatch):
    shown = Shown(is_terminal=True)
    clock = iter(range(0, 10_000, 10))
    counts = iter([10, 11, 12, 13])
    with RunProgress(shown.console) as progress:
        progress._bar.get_time = progress._bar.tasks[0]._get_time = lambda: next(clock)
        progress.phase("starting Ray")
        progress._bar.refresh()
        assert "starting Ray" in shown.text
        progress.begin(40, counts.__next__)
        for number in (4, 5, 6):
            progress.finished([ok(number)])
        progress._bar.refresh()
        bar = shown.text.rpartition("3 ok")[2]
    assert "13/40" in bar
    elapsed, left = re.findall(r"\d+:\d\d:\d\d", bar)[:2]
    assert elapsed != left
    # Ten seconds a look: 27 cells at the pace of this run, whatever earlier ones left.
    hours, minutes, seconds = map(int, left.split(":"))
    assert 27 * 10 / 2 <= 3600 * hours + 60 * minutes + seconds <= 27 * 60


@pytest.mark.parametrize("is_terminal", [True, False])
def test_rows_of_cells_that_cannot_run_end_no_phase(is_terminal):
    shown = Shown(is_terminal=is_terminal)
    with RunProgress(shown.console) as progress:
        progress.begin(2, iter([0, 1, 2]).__next__)
        progress.phase("starting Ray")
        progress.finished([never_run(make_cell("static", "w9a8"), "unsupported", "no kernel")])
        progress._bar.refresh()
        assert "1 unsupported" not in shown.text
        progress.phase("loading models")
        progress._bar.refresh()
        assert "loading models" in shown.text
        progress.finished([ok(4)])
        progress._bar.refresh()
    assert is_terminal == ("1 unsupported, 1 ok" in shown.text)


def test_a_run_that_cannot_start_leaves_no_bar():
    shown = Shown(is_terminal=True)
    with RunProgress(shown.console) as progress:
        progress.phase("reading the spec")
    assert shown.file.getvalue().endswith("\x1b[2K")  # the line is erased


def test_reasons_that_differ_by_an_id_are_one_and_the_most_frequent_comes_first():
    rows = [
        ("failed", "not run: 0123456789abcdef crashed\nmore", "m/d/b/cpu/s/w8"),
        ("oom", None, "m/d/b/cpu/s/w2"),
        ("failed", "not run: fedcba9876543210 crashed\nmore", "m/d/b/cpu/s/w4"),
    ]
    assert list(reason_lines(grouped(rows), 8, "qb status RUN")) == [
        "    2  failed      not run: … crashed (e.g. m/d/b/cpu/s/w8)",
        "    1  oom         no reason was given (e.g. m/d/b/cpu/s/w2)",
    ]


@pytest.mark.parametrize(("kinds", "more"), [(9, "1 more reason"), (30, "22 more reasons")])
def test_what_does_not_fit_is_counted_with_the_command_that_shows_it(kinds, more):
    reasons = grouped(("failed", f"kind {kind}", "name") for kind in range(kinds))
    *shown, last = reason_lines(reasons, 8, "qb status runs/x")
    assert len(shown) == 8
    assert last == f"… and {more} (qb status runs/x)"
