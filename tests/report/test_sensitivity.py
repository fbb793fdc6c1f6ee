import pandas as pd
import pytest
from stored_cells import layer, make_cell, quality

from qb_cluster.report.analysis import analyse
from qb_cluster.report.document import build
from qb_cluster.report.sensitivity import COLUMNS
from qb_cluster.store.reading import read_run

CELL = make_cell("weight_only", "w4", backend="pytorch", execution="simulated")
LAYERS = [
    layer("conv1", bits="w4", sqnr_db=30.0, parameters=90, macs=5_000),
    layer("conv1", "all_but", "w4", sqnr_db=21.0, parameters=90, macs=5_000),
    layer("fc", bits="w4", sqnr_db=22.0, parameters=640, macs=640),
    layer("fc", "all_but", "w4", sqnr_db=29.0, parameters=640, macs=640),
]


def found(path):
    return analyse(read_run(path)).layers


def tables(path):
    return [t for t in build(analyse(read_run(path))).tables if t.title.startswith("layers of")]


def test_both_modes_of_a_layer_are_in_one_row_the_worst_layer_first(store):
    frame = found(store((CELL, quality(CELL, layers=LAYERS, sqnr_db=20.5))))
    assert list(frame.columns) == list(COLUMNS)
    assert frame["layer"].tolist() == ["fc", "conv1"]
    assert frame["only_sqnr_db"].tolist() == [22.0, 30.0]
    assert frame["all_but_sqnr_db"].tolist() == [29.0, 21.0]
    assert frame["all_sqnr_db"].tolist() == [20.5, 20.5]
    assert frame["excess_db"].tolist() == pytest.approx([1.0, 1.0])
    assert set(frame["bits"]) == {"w4"}


def test_the_report_shows_each_layer_beside_what_was_to_be_expected_of_it(store):
    [table] = tables(store((CELL, quality(CELL, layers=LAYERS, sqnr_db=20.5))))
    assert table.title == ("layers of digits-cnn · pytorch · weight_only · digits on cpu, 1 thread")
    assert table.header == (
        "bits",
        "layer",
        "weights",
        "MACs",
        "only it",
        "all but it",
        "weight",
        "expected",
        "excess",
    )
    assert table.rows == (
        ("w4", "all", "730", "5640", "20.5 dB", "–", "–", "–", "–"),
        ("w4", "fc", "640", "640", "22.0 dB", "29.0 dB", "19.0 dB", "20.0 dB", "+1.0 dB"),
        ("w4", "conv1", "90", "5000", "30.0 dB", "21.0 dB", "27.0 dB", "28.0 dB", "+1.0 dB"),
    )


def test_a_layer_measured_in_one_mode_or_without_a_law_has_gaps_and_no_zeros(store):
    alone = [layer("fc", bits="w4")]
    path = store((CELL, quality(CELL, layers=alone)))
    assert found(path)["all_but_sqnr_db"].isna().all()
    [table] = tables(path)
    assert table.rows[1][5] == "–"


def test_bit_widths_share_a_table_and_calibrations_do_not(store):
    cells = [
        make_cell("static", bits, execution="simulated", seed=seed)
        for bits, seed in (("w8a8", 0), ("w4a8", 0), ("w8a8", 1))
    ]
    path = store(
        *((cell, quality(cell, layers=[layer("fc", bits=str(cell.bits))])) for cell in cells)
    )
    one, two = tables(path)
    assert "observer minmax" in one.title
    assert [row[0] for row in one.rows] == ["w8a8", "w8a8", "w4a8", "w4a8"]
    assert [row[0] for row in two.rows] == ["w8a8", "w8a8"]


def test_many_layers_are_cut_after_the_worst_and_counted(store):
    many = [layer(f"layer{i:02}", sqnr_db=50.0 - i) for i in range(30)]
    [table] = tables(store((CELL, quality(CELL, layers=many))))
    assert table.rows[1][1] == "layer29"
    assert table.rows[-1][1] == "… 22 more, in `layers`"
    assert len(table.rows) == 1 + 8 + 1


def test_a_run_without_layers_says_nothing_of_them(store):
    path = store((CELL, quality(CELL)))
    assert found(path).empty
    assert tables(path) == []
    assert isinstance(found(path), pd.DataFrame)
