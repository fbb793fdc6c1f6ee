import re

import pytest
from rich.cells import cell_len
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts import MEASURED, STATUSES, Calibration, Device, Measure, Ref
from qb_cluster.report.analysis import analyse
from qb_cluster.report.document import build
from qb_cluster.report.render import to_markdown
from qb_cluster.store.reading import read_run
from qb_cluster.store.run_folder import RunFolder

BASELINE, CELL = make_cell(None), make_cell("static", "w8a8")


def grids(path):
    """The comparison tables: {(scheme, row label, column): text of the place}."""
    return {
        (table.title.split(" · ")[0], row[0].replace("\n", " "), column): text
        for table in build(analyse(read_run(path))).tables
        if table.is_grid
        for row in table.rows
        for column, text in zip(table.header[1:], row[1:], strict=True)
    }


def place(path, bits="w8a8", scheme="static"):
    return grids(path)[scheme, "digits-cnn tflite", bits].splitlines()


def test_a_place_shows_change_interval_flips_size_and_speed(store):
    found = quality(CELL, n=1000, right=900, worse=30, better=2)
    assert place(store((CELL, found, latency(CELL, ratio=1.8249)))) == [
        "-2.80 worse",
        "[-3.92…-1.67]",
        "flips: 30 lost, 2 gained",
        "size 4.0×",
        "1.8× faster ±4 %",
    ]


def test_what_is_undecided_or_equivalent_says_so(store):
    timing = latency(CELL, ratio=1.01, speedup_verdict="equivalent")
    lines = place(store((CELL, quality(CELL, worse=1, better=0), timing)))
    assert lines[0] == "-0.3 undecided"
    assert lines[4] == "same speed ±4 %"


def test_a_speed_that_is_undecided_has_a_question_mark(store):
    timing = latency(CELL, ratio=0.5, speedup_verdict="undecided")
    lines = place(store((CELL, quality(CELL), timing)))
    assert lines[4] == "2.0× slower? ±4 %"


def test_a_cell_that_quantized_a_part_is_called_partial_in_place_of_a_verdict(store):
    lines = place(store((CELL, quality(CELL, covered_share=0.5))))
    assert lines[0] == "-0.8 partial 50 %"


def test_a_flagged_timing_is_marked(store):
    lines = place(store((CELL, quality(CELL), latency(CELL, latency_flags=["noisy", "unpinned"]))))
    assert lines[4] == "3.2× faster† ±4 %"


def test_a_simulated_cell_has_neither_size_nor_latency(store):
    cell = make_cell("weight_only", "w3", execution="simulated")
    assert place(store((cell, quality(cell))), "w3", "weight_only") == [
        "-0.8 undecided",
        "[-2.3…0.6]",
        "flips: 4 lost, 1 gained",
        "sim",
    ]


def test_a_cell_that_is_not_ok_shows_its_status_and_nothing_else(store, every_status):
    late = make_cell("static", "w16a8")
    stuck = (late, quality(late), failed(late, "timeout", "no end", stage="latency"))
    shown = grids(store(*every_status, stuck))
    texts = [text for text in shown.values() if "\n" not in text]
    assert sorted(texts) == sorted([*set(STATUSES) - set(MEASURED), "timeout"])


def test_a_kernel_that_computes_something_else_shows_both_sqnrs_and_no_change(store):
    found = {"sqnr_db": 1.24, "reference_sqnr_db": 37.9, "top1_agreement": 0.1}
    path = store((CELL, failed(CELL, "kernel_mismatch", "garbage", values=found)))
    assert place(path) == ["kernel_mismatch", "SQNR 1.2 dB", "sim 37.9 dB"]
    legend = build(analyse(read_run(path))).legend
    assert any(line.startswith("kernel_mismatch: ") for line in legend)


def test_cells_that_differ_in_the_observer_are_told_apart_by_it(store):
    cells = [
        make_cell("static", "w8a8", calibration=Calibration(observer="minmax")),
        make_cell(
            "static", "w8a8", calibration=Calibration(observer="percentile", percentile=99.9)
        ),
    ]
    lines = place(store(*((cell, quality(cell)) for cell in cells)))
    heads = [line for line in lines if line.endswith(":")]
    assert heads == ["observer minmax:", "observer percentile:", "percentile 99.9:"]


def test_reasons_are_counted_the_most_frequent_first(store):
    cells = [make_cell("static", f"w{bits}a8") for bits in range(2, 8)]
    rows = [(cell, failed(cell, "failed", "odd one\nwith details")) for cell in cells[:1]]
    rows += [(cell, failed(cell, "oom", "out of memory")) for cell in cells[1:4]]
    for cell in cells[4:]:
        rows.append((make_cell(cell.scheme.label, str(cell.bits), reason="no kernel"),))
    [table] = [t for t in build(analyse(read_run(store(*rows)))).tables if t.title == "not ok"]
    assert [row[:3] for row in table.rows] == [
        ("oom", "3", "out of memory"),
        ("unsupported", "2", "no kernel"),
        ("failed", "1", "odd one"),
    ]
    assert table.rows[2][3] == "digits-cnn · tflite · static w2a8"


def test_many_different_reasons_are_cut_and_counted(store):
    cells = [make_cell("static", "w8a8", seed=seed) for seed in range(30)]
    path = store(*((cell, failed(cell, "failed", f"reason {cell.cell_id}")) for cell in cells))
    table = build(analyse(read_run(path))).tables[-1]
    assert len(table.rows) == 21
    assert table.rows[-1][:3] == ("…", "10", "10 more, in the table `results`")


def test_notes_on_good_cells_are_counted_one_by_one(store):
    cells = [make_cell("static", bits, reason="slow kernel") for bits in ("w8a8", "w4a8")]
    notes = [["2 of 4 weights stay float"], None]
    rows = [(c, quality(c, notes=n), latency(c)) for c, n in zip(cells, notes, strict=True)]
    table = build(analyse(read_run(store(*rows)))).tables[-1]
    assert [row[:3] for row in table.rows] == [
        ("ok", "2", "slow kernel"),
        ("ok", "1", "2 of 4 weights stay float"),
    ]


def test_baselines_show_value_latency_noise_and_size(store):
    slow = make_cell(None, backend="onnxruntime")
    broken = make_cell(None, backend="pytorch")
    path = store(
        (
            BASELINE,
            quality(BASELINE),
            latency(BASELINE, median_ns=16_040, speedup_low=0.991, speedup_high=1.008),
        ),
        (slow, quality(slow)),
        (broken, failed(broken, "crashed", "killed its worker twice")),
    )
    [table] = [
        t for t in build(analyse(read_run(path))).tables if t.title.startswith("float baselines")
    ]
    assert table.header == ("model", "backend", "accuracy", "latency", "timing noise", "size")
    assert table.rows == (
        ("digits-cnn", "onnxruntime", "97.2%", "–", "–", "40.0 kB"),
        ("digits-cnn", "pytorch", "crashed", "–", "–", "–"),
        ("digits-cnn", "tflite", "97.2%", "16.0 µs", "±1 %", "40.0 kB"),
    )


def test_a_float_model_that_is_told_from_itself_is_marked(store):
    path = store((BASELINE, quality(BASELINE), latency(BASELINE, ratio=1.1, speedup_low=1.05)))
    [table] = [
        t for t in build(analyse(read_run(path))).tables if t.title.startswith("float baselines")
    ]
    assert table.rows[0][4] == "±14 % !"


def test_datasets_devices_and_threads_have_tables_of_their_own(store):
    cells = [
        CELL,
        make_cell("static", "w8a8", dataset="mnist"),
        make_cell("static", "w8a8", device=Device("pi", 1)),
        make_cell("static", "w8a8", device=Device("cpu", 4)),
    ]
    path = store(*((cell, quality(cell, n=100 + 20 * i)) for i, cell in enumerate(cells)))
    titles = [table.title.split(" · ") for table in build(analyse(read_run(path))).tables]
    assert [title[2:] for title in titles if title[1:2] == ["change of accuracy in points"]] == [
        ["digits on cpu, 1 thread", "n = 100"],
        ["digits on cpu, 4 threads", "n = 160"],
        ["digits on pi, 1 thread", "n = 140"],
        ["mnist on cpu, 1 thread", "n = 120"],
    ]


def test_cells_that_fall_into_one_place_are_told_apart_by_what_differs(store):
    cells = [make_cell("static", "w8a8", seed=seed) for seed in (0, 1)]
    path = store(*((c, quality(c, worse=w)) for c, w in zip(cells, (4, 9), strict=True)))
    lines = place(path)
    assert lines[0] == "seed 0:"
    assert lines[1].startswith("-0.8 ")
    assert lines[5] == "seed 1:"
    assert lines[6].startswith("-2.2 ")


def test_another_metric_is_shown_in_its_own_unit(store):
    measure = Measure(metric=Ref("psnr", "my.metrics:psnr"))
    cell = make_cell("static", "w8a8", measure=measure)
    found = quality(
        cell,
        delta=-1.2345,
        delta_low=-2.0,
        delta_high=-0.5,
        p_value=None,
        flips_worse=None,
        flips_better=None,
    )
    path = store((cell, found))
    assert place(path) == ["-1.23", "[-2…-0.5]", "size 4.0×"]
    assert "change of psnr" in build(analyse(read_run(path))).tables[0].title


def test_a_dataset_of_one_example_decides_nothing_and_breaks_nothing(store, show):
    found = quality(CELL, n=1, right=1, worse=1, better=0, delta_low=None, delta_high=None)
    path = store((BASELINE, quality(BASELINE, n=1, right=1)), (CELL, found))
    assert place(path) == ["-100 undecided", "no interval", "flips: 1 lost, 0 gained", "size 4.0×"]
    assert "n = 1" in show(path)


def test_a_terminal_shows_labels_with_brackets_as_they_are(store, show):
    cell = make_cell("static[granularity=per_tensor]", "w8a8", model="[bold]net[/bold]")
    shown = show(store((cell, quality(cell))), width=120)
    assert "static[granularity=per_tensor] · change of accuracy in points" in shown
    assert "[bold]net[/bold]" in shown


def big_run():
    for model in ("digits-cnn", "a.very.long.package.name:with_a_callable[and=its,options=too]"):
        for backend in ("pytorch", "tflite", "onnxruntime"):
            baseline = make_cell(None, model=model, backend=backend)
            yield baseline, quality(baseline), latency(baseline)
            for bits in range(2, 17):
                cell = make_cell("weight_only", f"w{bits}", model=model, backend=backend)
                if bits == 5:
                    yield cell, failed(cell, "kernel_mismatch", "a long story " * 30)
                else:
                    yield cell, quality(cell, worse=90), latency(cell)


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_no_column_is_lost(store, show, width):
    shown = show(store(*big_run()), width=width)
    assert max(map(cell_len, shown.splitlines())) <= width
    headers = re.findall(r"^backend .*$", shown, flags=re.MULTILINE)
    columns = [word for line in headers for word in line.split()[1:]]
    grid = [word for word in columns if re.fullmatch(r"w\d+", word)]
    assert grid == [f"w{bits}" for bits in range(16, 1, -1)]


def test_two_bit_widths_fit_side_by_side_into_80_columns(store, show):
    cells = [make_cell("weight_only", bits, backend="onnxruntime") for bits in ("w8", "w4")]
    rows = [(cell, quality(cell, worse=90), latency(cell)) for cell in cells]
    assert re.search(r"^backend +w8 +w4 *$", show(store(*rows)), flags=re.MULTILINE)


def test_an_unfinished_run_says_how_many_cells_are_missing(store, show):
    path = store((CELL, quality(CELL)), planned_cells=5)
    assert "Unfinished: 4 of 5 planned cells" in show(path, width=200)


def test_a_run_of_a_changed_spec_says_how_many_are_missing_at_least(store, show):
    path = store((CELL, quality(CELL)))
    RunFolder.open(
        path, sweep="digits", spec_text="", spec_digest="changed", planned_cells=5
    ).close()
    assert "Unfinished: at least 4 of 5 planned cells" in show(path, width=200)


def test_a_finished_run_does_not_speak_of_missing_cells(store, show):
    shown = show(store((CELL, quality(CELL)), planned_cells=1))
    assert "1 cells: 1 ok." in shown
    assert "Unfinished" not in shown


def test_the_legend_names_the_confidence_of_the_intervals(store, show):
    measure = Measure(confidence=0.9)
    cell = make_cell("static", "w8a8", measure=measure)
    assert "its 90 % interval below" in show(store((cell, quality(cell))), width=300)


def markdown_tables(text):
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def test_markdown_has_the_same_tables_with_as_many_fields_in_each_line(store):
    path = store(*big_run())
    document = build(analyse(read_run(path)))
    found = markdown_tables(to_markdown(document))
    assert len(found) == len(document.tables)
    for table, lines in zip(document.tables, found, strict=True):
        assert {len(fields) for fields in lines} == {len(table.header)}
        assert len(lines) == len(table.rows) + 2
    headings = re.findall("^## (.*)$", to_markdown(document), flags=re.MULTILINE)
    assert len(headings) == len(document.tables)


def test_markdown_keeps_a_place_on_one_line(store):
    text = to_markdown(build(analyse(read_run(store((CELL, quality(CELL), latency(CELL)))))))
    [line] = [line for line in text.splitlines() if line.startswith("| digits-cnn<br>tflite")]
    assert (
        "-0.8 undecided<br>[-2.3…0.6]<br>flips: 4 lost, 1 gained<br>size 4.0×<br>3.2× faster"
        in line
    )


def test_markdown_does_not_take_a_message_for_markup(store):
    path = store((CELL, failed(CELL, "failed", "f(a|b) <lambda> in __init__ of *args, x_y")))
    text = to_markdown(build(analyse(read_run(path))))
    assert r"f(a\|b) &lt;lambda&gt; in \_\_init\_\_ of \*args, x_y" in text
