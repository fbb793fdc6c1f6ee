from dataclasses import replace

import pandas as pd
import pytest
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts import Device
from qb_cluster.contracts.judgement import Judgement
from qb_cluster.report.agreement import agreement
from qb_cluster.report.analysis import analyse
from qb_cluster.report.comparison import compare
from qb_cluster.report.devices import COLUMNS, devices
from qb_cluster.report.document import build
from qb_cluster.store.reading import read_results, read_run

CPU, PI = Device("cpu", 1), Device("pi", 4)


def ran(cell, **environment):
    stages = quality(cell), latency(cell, runtime=f"{cell.backend.label} 1")
    return cell, *(replace(stage, environment=environment) for stage in stages)


@pytest.fixture
def two_devices(store):
    """A run of two backends on a desk, and of one of them on a board too."""
    where = [("tflite", CPU), ("tflite", PI), ("pytorch", CPU)]
    hosts = {"cpu": {"host": "desk", "arch": "x86_64"}, "pi": {"host": "shelf", "board": "Pi 4"}}
    return store(
        *(
            ran(make_cell(scheme, backend=backend, device=device), **hosts[device.name])
            for backend, device in where
            for scheme in (None, "static")
        )
    )


def compared(path):
    return compare(read_results(path), Judgement())


def table(path, start):
    [found] = [t for t in build(analyse(read_run(path))).tables if t.title.startswith(start)]
    return found


def test_the_matrix_of_two_devices_has_every_pair_of_backends_and_devices(two_devices):
    frame = agreement(read_run(two_devices))
    quantized = frame[frame["scheme"] == "static"]
    assert len(quantized) == 6 * 5
    matrix = quantized.pivot_table(
        index=["backend", "device", "execution"],
        columns=["other_backend", "other_device", "other_execution"],
        values="top1_agreement",
    )
    assert matrix.shape == (6, 6)
    assert matrix.notna().to_numpy().sum() == 30
    assert [row[0].splitlines()[1] for row in table(two_devices, "static · agreement").rows] == [
        "pytorch @ cpu · tflite @ cpu",
        "pytorch @ cpu · tflite @ pi",
        "tflite @ cpu · tflite @ pi",
    ]


def test_the_same_cells_on_two_devices_are_neighbours_with_where_they_ran(two_devices):
    frame = devices(compared(two_devices))
    assert list(frame.columns) == list(COLUMNS)
    both = frame[(frame["backend"] == "tflite") & (frame["scheme"] == "static")]
    assert both["device"].tolist() == ["cpu", "pi"]
    assert both.index[1] == both.index[0] + 1
    assert both["host"].tolist() == ["desk", "shelf"]
    assert pd.isna(both["board"].iloc[0])
    assert both["board"].iloc[1] == "Pi 4"


def test_a_grid_has_a_column_a_device_and_the_list_says_what_each_is(two_devices):
    grid = table(two_devices, "static · accuracy and latency")
    assert grid.header == ("model\nbackend", "cpu", "pi")
    place = "96.4%\n-0.8 undecided\n5.00 µs\n3.2× faster ±4 %"
    assert grid.rows == (
        ("digits-cnn\npytorch w8a8", place, "–"),
        ("digits-cnn\ntflite w8a8", place, place),
    )
    assert table(two_devices, "float · accuracy and latency").rows[1][1] == "97.2%\n5.00 µs"
    assert table(two_devices, "devices").rows == (
        ("cpu", "1", "desk", "x86_64", "–", "–", "pytorch 1\ntflite 1", "4"),
        ("pi", "4", "shelf", "–", "Pi 4", "–", "tflite 1", "2"),
    )


def test_the_tables_of_devices_lie_beside_the_others_as_parquet_and_csv(two_devices, show):
    assert "devices.csv" not in show(two_devices)
    folder = two_devices / "report"
    parquet, csv = (
        pd.read_parquet(folder / "devices.parquet"),
        pd.read_csv(folder / "devices.csv"),
    )
    assert len(parquet) == 6
    assert parquet["cell_id"].tolist() == csv["cell_id"].tolist()
    assert "tflite @ cpu · tflite @ pi" in (folder / "comparison.md").read_text(encoding="utf-8")


def test_one_name_with_other_threads_is_another_device(store):
    cells = [make_cell(device=Device("cpu", threads)) for threads in (1, 4)]
    path = store(*((cell, quality(cell)) for cell in cells))
    [row] = table(path, "static · agreement").rows
    assert row[0] == "digits-cnn\ntflite @ cpu[threads=1] · tflite @ cpu[threads=4]"


def test_what_has_a_number_nowhere_is_in_no_grid_and_what_failed_on_one_says_so(store):
    good, bad = (make_cell(device=device) for device in (CPU, PI))
    gone = [make_cell("dynamic", device=device) for device in (CPU, PI)]
    path = store(
        (good, quality(good)),
        *((cell, failed(cell, "crashed", "the board went away")) for cell in (bad, *gone)),
    )
    assert table(path, "static · accuracy").rows[0][2] == "crashed"
    titles = [t.title for t in build(analyse(read_run(path))).tables]
    assert not any(title.startswith("dynamic · accuracy and latency") for title in titles)
    assert len(devices(compared(path))) == 4


def test_a_run_on_one_device_has_no_table_of_devices(store):
    cell = make_cell()
    path = store((cell, quality(cell)))
    assert devices(compared(path)).empty
    assert not any("device" in t.title for t in build(analyse(read_run(path))).tables)
