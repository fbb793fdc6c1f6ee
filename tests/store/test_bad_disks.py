"""Full disks, damaged files, foreign files."""

import resource
import time
from contextlib import contextmanager

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_cells import finish, latency, make_cell, quality

from qb_cluster.errors import RunFolderError
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.reading import read_results, read_run
from qb_cluster.store.run_folder import RunFolder
from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS

BASELINE, CELL = make_cell(None), make_cell("static", "w8a8")


def open_folder(path, **options):
    return RunFolder.open(
        path, sweep="digits", spec_text="sweep: digits", spec_digest="spec", **options
    )


def parts(path):
    return {
        str(part.relative_to(path)): part.stat().st_size
        for table in ("results", "stages", "predictions", "samples")
        for part in (path / table).iterdir()
    }


@contextmanager
def room_for(n_bytes):
    """Let no file grow beyond this: writing more fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["cells", "stages"])
def test_a_commit_that_does_not_fit_leaves_nothing_of_itself_and_can_be_tried_again(tmp_path, kind):
    """The predictions fit; the marker after them does not."""

    def commit(run):
        if kind == "cells":
            run.commit_cells([finish(CELL, quality(CELL, n=5, right=4), latency(CELL))])
        else:
            outcome = quality(CELL, n=5, right=4, notes=["long " * 50_000])
            run.commit_stages([JournalEntry(outcome, 1)])

    with open_folder(tmp_path) as run:
        run.commit_cells([finish(BASELINE, quality(BASELINE))])
        before = parts(tmp_path)
        limit = 8_000 if kind == "cells" else 4_000
        with (
            room_for(limit),
            pytest.raises(RunFolderError, match=r"nothing written earlier is lost.*again"),
        ):
            commit(run)
        assert parts(tmp_path) == before
        assert list((tmp_path / ".tmp").iterdir()) == []
        assert set(run.finished()) == {BASELINE.cell_id}
        commit(run)
        marker = "results" if kind == "cells" else "stages"
        assert (pd.read_parquet(tmp_path / marker)["cell_id"] == CELL.cell_id).sum() == 1
        assert (pd.read_parquet(tmp_path / "predictions")["cell_id"] == CELL.cell_id).sum() == 5


def with_two_parts(path):
    with open_folder(path) as run:
        run.commit_cells([finish(BASELINE, quality(BASELINE, n=5, right=4))])
        run.commit_cells([finish(CELL, quality(CELL, n=5, right=4), latency(CELL))])
    return sorted((path / "results").glob("[0-9]*"))


def test_a_new_row_that_does_not_fit_leaves_the_old_one_and_can_be_tried_again(tmp_path):
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(CELL, quality(CELL, n=5, right=4), latency(CELL))])
        before = parts(tmp_path)
        again = finish(CELL, quality(CELL, n=5, right=4, value=0.25), latency(CELL))
        with room_for(8_000), pytest.raises(RunFolderError, match="nothing written earlier"):
            run.commit_cells([again])
        assert parts(tmp_path) == before
        assert list((tmp_path / ".tmp").iterdir()) == []
        assert list((tmp_path / ".pending").iterdir()) == []
        run.commit_cells([again])
    assert read_results(tmp_path)["value"].tolist() == [0.25]
    assert len(pd.read_parquet(tmp_path / "predictions")) == 5


def test_parts_that_cannot_be_merged_for_want_of_room_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("qb_cluster.store.run_folder.MANY_AT_THE_END", 2)
    with open_folder(tmp_path) as run:
        for cell in (BASELINE, CELL):
            run.commit_cells([finish(cell, quality(cell, n=5, right=4))])
        before = parts(tmp_path)
        with room_for(1_000):
            run.close()
    assert parts(tmp_path) == before
    with open_folder(tmp_path) as run:
        assert len(run.finished()) == 2
    assert len(list((tmp_path / "results").glob("[0-9]*"))) == 1


@pytest.mark.parametrize("keep", [0, 7, 1_000, -8, -1])
def test_a_truncated_part_is_named_and_its_cells_run_again(tmp_path, keep):
    _, part = with_two_parts(tmp_path)
    part.write_bytes(part.read_bytes()[:keep])
    run = read_run(tmp_path)
    assert run.results["cell_id"].tolist() == [BASELINE.cell_id]
    assert len(run.problems) == 1
    assert str(part) in run.problems[0]
    with open_folder(tmp_path) as folder:
        assert set(folder.finished()) == {BASELINE.cell_id}
        assert folder.problems == list(run.problems)
        folder.commit_cells([finish(CELL, quality(CELL, n=5, right=4))])
    assert set(read_results(tmp_path)["cell_id"]) == {BASELINE.cell_id, CELL.cell_id}
    assert part.exists()  # it is named, and left for the user to look at


def test_damage_in_the_middle_of_a_part_is_named(tmp_path):
    _, part = with_two_parts(tmp_path)
    content = bytearray(part.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    part.write_bytes(content)
    run = read_run(tmp_path)
    assert run.results["cell_id"].tolist() == [BASELINE.cell_id]
    assert str(part) in run.problems[0]


def test_foreign_files_are_named_and_never_deleted(tmp_path):
    with_two_parts(tmp_path)
    foreign = {
        tmp_path / "results" / "notes.txt": b"do not forget",
        tmp_path / "predictions" / "copy.parquet": b"PAR1",
        tmp_path / "samples" / "folder" / "x": b"",
    }
    for path, content in foreign.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    other = tmp_path / "results" / "other.parquet"
    pq.write_table(pa.table({"cell_id": ["stranger"]}), other)
    with open_folder(tmp_path) as run:
        assert set(run.finished()) == {BASELINE.cell_id, CELL.cell_id}
        problems = "\n".join(run.problems)
    for named in ("notes.txt", "copy.parquet", "samples/folder", "other.parquet"):
        assert named in problems
    assert problems.count("\n") == 3
    assert {path: path.read_bytes() for path in foreign} == foreign
    assert len(read_results(tmp_path)) == 2


def test_a_part_of_a_newer_layout_is_named(tmp_path):
    with_two_parts(tmp_path)
    schema = SCHEMAS["results"]
    newer = schema.with_metadata(
        schema.metadata | {b"qb_cluster.schema_version": str(SCHEMA_VERSION + 1).encode()}
    )
    pq.write_table(newer.empty_table(), tmp_path / "results" / "newer.parquet")
    assert "newer layout" in read_run(tmp_path).problems[0]


def test_a_part_of_an_older_layout_is_read_and_what_it_has_no_column_for_is_null(tmp_path):
    with_two_parts(tmp_path)
    part = min((tmp_path / "results").glob("[0-9]*.parquet"))
    rows = pq.read_table(part).drop_columns(["outputs_digest", "integer_mac_share"])
    metadata = rows.schema.metadata | {b"qb_cluster.schema_version": b"1"}
    pq.write_table(rows.replace_schema_metadata(metadata), part)
    run = read_run(tmp_path)
    assert run.problems == ()
    assert len(run.results) == 2
    is_old = run.results["cell_id"].isin(rows["cell_id"].to_pylist())
    assert is_old.sum() == 1
    assert run.results["integer_mac_share"].isna().equals(is_old)
    assert run.results["value"].notna().all()


def test_what_a_killed_driver_left_is_cleared_away(tmp_path):
    with_two_parts(tmp_path)
    before = parts(tmp_path)
    orphan = f"{time.time_ns():020d}-0123abcd.parquet"
    for table in ("predictions", "layers", "samples"):
        pq.write_table(SCHEMAS[table].empty_table(), tmp_path / table / orphan)
    (tmp_path / ".tmp" / "results-1").write_bytes(b"PAR1 half")
    open_folder(tmp_path).close()
    assert parts(tmp_path) == before
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_copied_parts_do_not_double_rows(tmp_path):
    _, part = with_two_parts(tmp_path)
    part.with_name("copy.parquet").write_bytes(part.read_bytes())
    assert sorted(read_results(tmp_path)["cell_id"]) == sorted([BASELINE.cell_id, CELL.cell_id])


def test_integers_that_may_be_null_stay_integers(tmp_path):
    with_two_parts(tmp_path)
    results = read_results(tmp_path).set_index("cell_id")
    assert results.loc[CELL.cell_id, "flips_worse"] == 4
    assert results.loc[BASELINE.cell_id, "flips_worse"] is pd.NA
    assert results["flips_worse"].dtype == "Int64"
    assert results["weight_bits"].tolist() == [32, 8]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_reading_what_is_no_run_folder_says_so(tmp_path, name):
    with pytest.raises(RunFolderError, match="is no run folder" if not name else "does not exist"):
        read_run(tmp_path / name)


def test_a_run_says_whose_it_is_and_how_many_cells_were_planned(tmp_path):
    open_folder(tmp_path).close()
    assert read_run(tmp_path).planned_cells is None
    open_folder(tmp_path, planned_cells=9).close()
    run = read_run(tmp_path)
    assert (run.sweep, run.planned_cells, len(run.results), run.problems) == ("digits", 9, 0, ())
