import sys
from pathlib import Path

import pandas as pd
import pytest
from stored_cells import latency, make_cell, quality

from qb_cluster.contracts import STATUSES
from qb_cluster.errors import RunFolderError
from qb_cluster.installation import install_line
from qb_cluster.report import bits_plot
from qb_cluster.report.analysis import analyse
from qb_cluster.report.document import build
from qb_cluster.report.write import write_files
from qb_cluster.store.reading import read_run
from qb_cluster.store.run_folder import RunFolder

CELL = make_cell("static", "w8a8")


def write(path):
    analysis = analyse(read_run(path))
    return write_files(analysis, build(analysis), print)


def test_three_files_with_the_same_rows_lie_beside_the_results(store, every_status):
    path = store(*every_status)
    files = write(path)
    names = ["comparison.parquet", "comparison.csv", "comparison.md"]
    assert files == [f"{path}/report/{name}" for name in names]
    assert sorted(path.name for path in (path / "report").iterdir()) == sorted(names)
    parquet, csv = pd.read_parquet(files[0]), pd.read_csv(files[1])
    assert sorted(parquet["status"]) == sorted([*STATUSES, "ok"])
    assert parquet["cell_id"].tolist() == csv["cell_id"].tolist()
    deltas = [frame["delta"].astype("float64").tolist() for frame in (parquet, csv)]
    assert deltas[0] == pytest.approx(deltas[1], nan_ok=True)
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
    told = []
    show(path, told=told)
    assert f"no bits.svg: matplotlib is not installed; {install_line('plots')}" in told
    assert "](bits.svg)" not in (path / "report" / "comparison.md").read_text(encoding="utf-8")


def test_a_picture_is_drawn_again_only_when_it_would_show_something_else(store, show, monkeypatch):
    drawn = []
    draw = bits_plot.draw
    monkeypatch.setattr(bits_plot, "draw", lambda series: drawn.append(series) or draw(series))
    cells = [make_cell("weight_only", f"w{bits}") for bits in (2, 4, 8)]
    path = store(*((cell, quality(cell)) for cell in cells))
    show(path)
    picture = path / "report" / "bits.svg"
    first = picture.read_bytes()
    show(path)
    assert len(drawn) == 1
    assert picture.read_bytes() == first
    more = make_cell("weight_only", "w16")
    store(*((cell, quality(cell)) for cell in (*cells, more)))
    show(path)
    assert len(drawn) == 2
    assert picture.read_bytes() != first


def test_whole_numbers_are_whole_in_csv_and_what_is_unknown_is_empty(store, every_status):
    files = write(store(*every_status))
    rows = pd.read_csv(files[1], dtype=str, keep_default_na=False).set_index(["scheme", "status"])
    assert rows.loc[("static", "ok"), "flips_worse"] == "9"
    assert rows.loc[("static", "failed"), "flips_worse"] == ""


def test_a_second_report_replaces_the_first(store):
    path = store((CELL, quality(CELL)))
    write(path)
    other = make_cell("static", "w4a8")
    store((other, quality(other), latency(other)))
    parquet, *_ = write(path)
    assert len(pd.read_parquet(parquet)) == 2


def test_a_run_is_reported_while_its_driver_is_at_work(store, tmp_path):
    path = store((CELL, quality(CELL)))
    with RunFolder.open(path, sweep="digits", spec_text="", spec_digest="spec"):
        assert len(write(path)) == 3


def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(show, tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        show(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_finished_cell_says_so(show, tmp_path):
    RunFolder.open(tmp_path, sweep="digits", spec_text="", spec_digest="spec").close()
    with pytest.raises(RunFolderError, match=r"no cell has finished yet.*run `qb run` first"):
        show(tmp_path)
    assert not (tmp_path / "report").exists()


def test_damaged_files_are_named_under_the_tables(store, show):
    path = store((CELL, quality(CELL)))
    (path / "results" / "half.parquet").write_bytes(b"PAR1")
    assert "half.parquet" in show(path, width=300)
    assert "half.parquet" in (path / "report" / "comparison.md").read_text(encoding="utf-8")


def test_damaged_files_are_told_where_no_more_than_a_screen_is_printed(store, show):
    path = store((CELL, quality(CELL)))
    (path / "results" / "half.parquet").write_bytes(b"PAR1")
    told = []
    assert "half.parquet" not in show(path, width=300, told=told, full=False)
    assert "half.parquet" in told[-1]


def test_a_report_that_cannot_be_written_says_where(store):
    path = store((CELL, quality(CELL)))
    (path / "report").write_text("a file")
    with pytest.raises(RunFolderError, match=r"report cannot be written.*results are intact"):
        write(path)


def test_each_file_is_told(store, show):
    path = store((CELL, quality(CELL)))
    told = []
    show(path, told=told)
    names = ("comparison.parquet", "comparison.csv", "comparison.md")
    assert told == [f"wrote {path}/report/{name}" for name in names]


def test_the_comparison_is_as_good_from_a_folder_that_has_moved(store, tmp_path):
    path = store((CELL, quality(CELL)))
    path.rename(tmp_path / "elsewhere")
    assert len(write(tmp_path / "elsewhere")) == 3
