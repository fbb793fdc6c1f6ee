import functools
import io
import re

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console
from stored_cells import failed, latency, make_cell, quality, results_frame

from qb_cluster.contracts import Device
from qb_cluster.contracts.judgement import Judgement
from qb_cluster.report.agreement import COLUMNS as NO_AGREEMENT
from qb_cluster.report.analysis import Analysis
from qb_cluster.report.answer import answer
from qb_cluster.report.answer_table import LEGEND, MOST_GROUPS, to_markdown, to_terminal
from qb_cluster.report.comparison import compare
from qb_cluster.storage import open_folder
from qb_cluster.store.reading import StoredRun

WIDTHS = [60, 80, 100, 120]
LONG = "a.very.long.package.name:with_a_callable[and=its,options=too,more=options,most=8]"
SCHEMES = ("weight_only", "w8"), ("weight_only", "w4"), ("weight_only", "w2"), ("fp16", "w16")
SCHEMES += ("dynamic", "w8a8"), ("dynamic", "w4a8"), ("static", "w8a8"), ("static", "w4a8")
SCHEMES += (("static", "w4a4"),)


def analysed(results, *, sweep="digits", planned_cells=None):
    """The analysis of results that lie in no folder; without the agreement of backends."""
    nothing = pd.DataFrame(columns=list(NO_AGREEMENT))
    run = StoredRun(
        open_folder("nowhere"), sweep, "spec", planned_cells, None, results, nothing, ()
    )
    comparison = compare(results, Judgement())
    return Analysis(run, Judgement(), comparison, nothing, nothing, (), nothing, ())


def answered(*ended, **options):
    found = analysed(results_frame(*ended), **options)
    return answer(found, found.comparison)


def shown(given, width=80, *, everything=False, **terminal):
    console = Console(file=io.StringIO(), width=width, **{"force_terminal": False} | terminal)
    to_terminal(given, console, everything=everything)
    return console.file.getvalue()


def cell_of(number, **options):
    """A cell that ran: some are within, some worse, some larger than float, some slower."""
    cell = make_cell(*SCHEMES[number % len(SCHEMES)], **options)
    worse = (0, 1, 300, 22)[number % 4]
    size = 60_000 if number % 5 == 4 else 9_000 + number
    slow = {"ratio": 0.3} if number % 3 == 2 else {"ratio": 1.3 + number}
    found = quality(cell, n=1797, right=1700, worse=worse, better=0, artifact_bytes=size)
    return cell, found, latency(cell, median_ns=9_000 - number, **slow)


@functools.cache
def ordinary(models=("digits-cnn", "digits-mlp")):
    """Two models on three backends in nine configurations each, one of them without a number."""
    ended = []
    for model in models:
        for at, backend in enumerate(("onnxruntime", "pytorch", "tflite")):
            options = {"model": model, "backend": backend}
            baseline = make_cell(None, **options)
            noise = latency(baseline, ratio=1.1, speedup_low=1.05)
            ended.append((baseline, quality(baseline, n=1797, right=1700), noise))
            ended += [cell_of(number + at, **options) for number in range(at, 8 + at)]
            gone = make_cell("static", "w3a3", **options)
            ended.append((gone, failed(gone, "not_applied", "nothing")))
    return answered(*ended, planned_cells=99)


@functools.cache
def long_names():
    options = {"model": LONG, "dataset": LONG.upper(), "backend": LONG.replace("a", "b")}
    cell = make_cell(LONG.replace("a", "c"), "w8a8", **options)
    return answered((cell, quality(cell), latency(cell)))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("make", [ordinary, long_names])
def test_no_line_is_wider_than_the_terminal(make, width, everything):
    lines = shown(make(), width, everything=everything).splitlines()
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("models", [("digits-cnn", "digits-mlp"), ("digits-cnn",)])
def test_an_ordinary_run_is_answered_with_one_screen(models):
    lines = shown(ordinary(models)).splitlines()
    assert 20 <= len(lines) <= 24


@pytest.mark.parametrize("width", WIDTHS)
def test_names_that_fold_and_columns_without_room_do_not_make_the_screen_longer(width):
    ended = [cell_of(n, backend=f"{'x' * 40}-{b}") for n in range(9) for b in range(4)]
    lines = shown(answered(*ended), width).splitlines()
    assert len(lines) <= 24


def test_what_is_left_out_is_counted_and_how_to_see_it_is_said():
    given = ordinary()
    [line] = re.findall(r"^(\d+) more: (.*): --full$", shown(given, 120), flags=re.MULTILINE)
    rows = sum(len(group.rows) for group in given.groups)
    table_rows = re.findall(r"^[ ★](?:onnx|pyt|tfl)", shown(given, 120), flags=re.MULTILINE)
    assert int(line[0]) == rows - len(table_rows)
    assert sum(int(part.split()[0]) for part in line[1].split(", ")) == int(line[0])


def test_everything_is_every_row_and_nothing_more():
    given = ordinary()
    text = shown(given, everything=True)
    assert " more: " not in text
    rows = sum(len(group.rows) for group in given.groups)
    assert len(re.findall(r"^[ ★](?:onnx|pyt|tfl)", text, flags=re.MULTILINE)) == rows


@pytest.mark.parametrize("width", WIDTHS)
def test_a_column_is_in_the_header_or_named_as_left_out(width):
    text = shown(ordinary(), width)
    header = " ".join(text.splitlines()[1:3])
    left = re.findall(r"no room for: (.*?) \(widen the terminal\)", " ".join(text.split()))
    dropped = left[0].split(", ") if left else []
    for name in ("value", "Δ", "interval", "size", "time", "speed", "verdict"):
        assert (name in header) != (name in dropped), name
    assert bool(dropped) == (width == 60)


def test_a_column_that_says_nothing_is_not_there_and_not_missed():
    cell = make_cell("weight_only", "w4", execution="simulated")
    text = shown(answered((cell, quality(cell))), 120)
    assert "speed" not in text
    assert "no room" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_label_of_80_characters_is_folded_and_nothing_of_it_is_lost(width):
    lines = shown(long_names(), width).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("★"))
    end = next(at for at, line in enumerate(lines) if "undecided;" in line or "no room" in line)
    first = re.sub(r" +-0\.8 .*$", "", lines[start])
    folded = "".join([first, *lines[start + 1 : end]]).replace(" ", "")
    assert folded == f"★{LONG.replace('a', 'b')}{LONG.replace('a', 'c')}w8a8"
    everything = "".join(lines).replace(" ", "")
    assert LONG in everything
    assert LONG.upper() in everything


@pytest.mark.parametrize("form", [functools.partial(shown, everything=True), to_markdown])
def test_every_ratio_is_1_or_more_with_a_word(form):
    text = " ".join(form(ordinary()).split())
    ratios = re.findall(r"([\d.]+)×( \w+)?", text)
    assert len(ratios) > 40
    assert {word for _, word in ratios} == {" faster", " slower", " smaller"}
    assert min(float(number) for number, _ in ratios) >= 1


def test_there_are_no_escapes_where_nobody_watches():
    assert "\x1b" not in shown(ordinary())
    assert "\x1b[" in shown(ordinary(), force_terminal=True, color_system="standard")


def test_no_color_is_heard(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(ordinary(), force_terminal=True, color_system="standard")
    assert not re.search(r"\x1b\[(?:\d+;)*[349]\d", text)


@pytest.fixture(scope="module")
def ten_thousand():
    found = analysed(results_frame(*(cell_of(number) for number in range(9))))
    base = found.comparison
    copies = [
        base.assign(cell_id=base["cell_id"] + str(copy), batch_size=copy, model=f"net-{copy % 40}")
        for copy in range(1_200)
    ]
    return answer(found, pd.concat(copies, ignore_index=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_ten_thousand_cells_are_answered_with_a_screen_of_bounded_length(ten_thousand, width):
    assert sum(len(group.rows) for group in ten_thousand.groups) == 10_800
    lines = shown(ten_thousand, width).splitlines()
    assert len(lines) <= 8 + 6 * MOST_GROUPS
    assert max(map(cell_len, lines)) <= width
    assert sum("on digits" in line for line in lines) == MOST_GROUPS


def words(*ended):
    """The last word or two of each row, by its bits."""
    text = shown(answered(*ended), 120, everything=True)
    found = r"^.tflite \w+ ?(\w*) .*?  +(?:.* )?(\w+(?: \d+ %)?) *$"
    return dict(re.findall(found, text, re.MULTILINE))


def test_each_row_ends_with_its_verdict_or_what_is_in_place_of_one():
    cells = [make_cell("static", f"w{bits}a8") for bits in range(2, 8)]
    counts = [0, 300, 22]
    ended = [
        (cell, quality(cell, n=1797, right=1700, worse=worse, better=0), latency(cell))
        for cell, worse in zip(cells, counts, strict=False)
    ]
    ended.append((cells[3], quality(cells[3], covered_share=0.5), latency(cells[3])))
    ended.append((cells[4], failed(cells[4], "oom", "full")))
    ended.append((cells[5], failed(cells[5], "kernel_mismatch", "garbage")))
    baseline = make_cell(None)
    ended.append((baseline, quality(baseline), latency(baseline, ratio=1.0)))
    assert words(*ended) == {
        "w2a8": "within",
        "w3a8": "worse",
        "w4a8": "undecided",
        "w5a8": "partial 50 %",
        "w6a8": "oom",
        "w7a8": "kernel_mismatch",
        "": "float",
    }


@pytest.mark.parametrize(
    ("timing", "word"),
    [
        ({"ratio": 3.25}, "3.2× faster"),
        ({"ratio": 0.25}, "4.0× slower"),
        ({"ratio": 1.3, "speedup_verdict": "undecided"}, "unclear"),
        ({"ratio": 1.01, "speedup_verdict": "equivalent"}, "same speed"),
        ({"ratio": 3.25, "latency_flags": ["noisy"]}, "3.2× faster"),
    ],
)
def test_a_speed_is_a_ratio_with_a_word_or_says_that_it_is_not_known(timing, word):
    cell = make_cell()
    text = shown(answered((cell, quality(cell), latency(cell, **timing))))
    assert re.search(rf"^★tflite static w8a8 .* {word} .*undecided$", text, flags=re.MULTILINE)


def test_what_is_on_the_front_has_a_star_and_the_star_is_explained():
    good, beaten = make_cell("static", "w8a8"), make_cell("static", "w4a8")
    given = answered(
        (good, quality(good), latency(good)),
        (beaten, quality(beaten, worse=9), latency(beaten, median_ns=9_000)),
    )
    text = shown(given)
    assert "★tflite static w8a8" in text
    assert " tflite static w4a8" in text
    assert text.splitlines()[-1].strip() == LEGEND


def test_times_and_sizes_share_a_unit_that_the_header_names():
    cells = [make_cell("static", bits) for bits in ("w8a8", "w4a8")]
    given = answered(
        (cells[0], quality(cells[0], artifact_bytes=2_500_000), latency(cells[0])),
        (
            cells[1],
            quality(cells[1], artifact_bytes=40_000),
            latency(cells[1], median_ns=8 * 10**6),
        ),
    )
    header = shown(given, 120).splitlines()[1:3]
    assert "size" in header[0]
    assert "kB" in header[1]
    assert "µs" in header[1]
    assert re.search(r"w4a8 .* 40 +8000 ", shown(given, 120))
    assert re.search(r"w8a8 .* 2500 +5\.0 ", shown(given, 120))


def test_devices_have_a_headline_each():
    ended = []
    for device in (Device("cpu", 1), Device("pi", 4)):
        cell = make_cell(device=device)
        ended.append((cell, quality(cell), latency(cell)))
    text = shown(answered(*ended))
    assert "digits-cnn on digits (cpu), n" in text
    assert "digits-cnn on digits (pi), n" in text


def test_an_answer_without_cells_says_so():
    found = analysed(results_frame((make_cell(), quality(make_cell()))))
    nothing = answer(found, found.comparison.iloc[:0])
    assert "no cell matches" in shown(nothing)
    assert "no cell matches" in to_markdown(nothing)


def test_markdown_has_every_row_in_a_table_of_equal_fields():
    given = ordinary()
    lines = [line for line in to_markdown(given).splitlines() if line.startswith("|")]
    fields = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(each) for each in fields} == {11}
    rows = sum(len(group.rows) for group in given.groups)
    assert len(lines) == rows + 2 * len(given.groups)
    assert all(group.headline in to_markdown(given) for group in given.groups)


def test_markdown_takes_no_label_for_markup():
    cell = make_cell("static", model="a|b *net* <i>")
    text = to_markdown(answered((cell, quality(cell))))
    assert r"a\|b \*net\* &lt;i&gt; on digits" in text


def test_p_and_the_examples_needed_are_there_where_there_is_room_and_else_not_missed():
    wide, narrow = (shown(ordinary(), width, everything=True) for width in (140, 80))
    header = [" ".join(line.split()) for line in wide.splitlines()[1:3]]
    assert "p p n" in header[0]
    assert "1-sided adjusted needed" in header[1]
    assert "needed" not in narrow.partition("configurations hold")[0]
    assert "adjusted" not in narrow
