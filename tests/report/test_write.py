import io
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from stored_cells import latency, make_cell, quality

from qb_cluster.contracts import STATUSES
from qb_cluster.errors import RunFolderError
from qb_cluster.report.write import write_report
from qb_cluster.store.run_folder import RunFolder

CELL = make_cell("static", "w8a8")


def silent():
    return Console(file=io.StringIO(), width=80)


def test_three_files_with_the_same_rows_lie_beside_the_results(store, every_status):
    path = store(*every_status)
    files = write_report(path, silent())
    names = ["comparison.parquet", "comparison.csv", "comparison.md"]
    assert files == [f"{path}/report/{name}" for name in names]
    assert sorted(path.name for path in (path / "report").iterdir()) == sorted(names)
    parquet, csv = pd.read_parquet(files[0]), pd.read_csv(files[1])
    assert sorted(parquet["status"]) == sorted(STATUSES)
    assert parquet["cell_id"].tolist() == csv["cell_id"].tolist()
    assert parquet["delta"].tolist() == pytest.approx(csv["delta"].tolist(), nan_ok=True)
    assert Path(files[2]).read_text(encoding="utf-8").startswith("# Sweep digits")


def test_agreement_and_a_picture_are_added_where_there_is_something_to_show(store, show):
    rows = [(make_cell(None, backend=name),) for name in ("tflite", "pytorch")]
    rows += [
        (make_cell("weight_only", f"w{bits}", backend=name),)
        for name in ("tflite", "pytorch")
        for bits in (2, 4, 8)
    ]
    path = store(*((cell, quality(cell)) for (cell,) in rows))
    show(path)
    names = sorted(file.name for file in (path / "report").iterdir())
    assert names == [
        "agreement.parquet",
        "bits.svg",
        "comparison.csv",
        "comparison.md",
        "comparison.parquet",
    ]
    assert (path / "report" / "bits.svg").read_bytes().startswith(b"<?xml")
    assert "](bits.svg)" in (path / "report" / "comparison.md").read_text(encoding="utf-8")


def test_without_matplotlib_the_report_says_how_to_get_the_picture(store, show, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    cells = [make_cell("weight_only", f"w{bits}") for bits in (2, 4, 8)]
    path = store(*((cell, quality(cell)) for cell in cells))
    assert "no bits.svg: matplotlib is not installed; pip install 'qb-cluster[plots]'" in show(path)
    assert "](bits.svg)" not in (path / "report" / "comparison.md").read_text(encoding="utf-8")


def test_whole_numbers_are_whole_in_csv_and_what_is_unknown_is_empty(store, every_status):
    files = write_report(store(*every_status), silent())
    rows = pd.read_csv(files[1], dtype=str, keep_default_na=False).set_index("status")
    assert rows.loc["ok", "flips_worse"] == "9"
    assert rows.loc["failed", "flips_worse"] == ""


def test_a_second_report_replaces_the_first(store):
    path = store((CELL, quality(CELL)))
    write_report(path, silent())
    other = make_cell("static", "w4a8")
    store((other, quality(other), latency(other)))
    parquet, *_ = write_report(path, silent())
    assert len(pd.read_parquet(parquet)) == 2


def test_a_run_is_reported_while_its_driver_is_at_work(store, tmp_path):
    path = store((CELL, quality(CELL)))
    with RunFolder.open(path, sweep="digits", spec_text="", spec_digest="spec"):
        assert len(write_report(path, silent())) == 3


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        write_report(tmp_path, silent())
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_finished_cell_says_so(tmp_path):
    RunFolder.open(tmp_path, sweep="digits", spec_text="", spec_digest="spec").close()
    with pytest.raises(RunFolderError, match="no cell has finished yet"):
        write_report(tmp_path, silent())


def test_damaged_files_are_named_under_the_tables(store, show):
    path = store((CELL, quality(CELL)))
    (path / "results" / "half.parquet").write_bytes(b"PAR1")
    assert "half.parquet" in show(path, width=300)
    assert "half.parquet" in (path / "report" / "comparison.md").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_says_where_after_it_was_printed(store):
    path = store((CELL, quality(CELL)))
    (path / "report").write_text("a file")
    console = silent()
    with pytest.raises(RunFolderError, match=r"report cannot be written.*results are intact"):
        write_report(path, console)
    assert "digits-cnn" in console.file.getvalue()


def test_the_comparison_is_as_good_from_a_folder_that_has_moved(store, tmp_path):
    path = store((CELL, quality(CELL)))
    path.rename(tmp_path / "elsewhere")
    assert len(write_report(tmp_path / "elsewhere", silent())) == 3
