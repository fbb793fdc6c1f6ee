import json
import os
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from stored_cells import (
    ENVIRONMENT,
    failed,
    finish,
    latency,
    layer,
    make_cell,
    never_run,
    quality,
    row,
)

from qb_cluster.errors import RunFolderError
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.run_folder import RunFolder
from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS, TABLES


def open_folder(path, sweep="digits", digest="spec-1", **options):
    return RunFolder.open(
        path, sweep=sweep, spec_text=f"sweep: {sweep}\n", spec_digest=digest, **options
    )


def read(path, table):
    return pd.read_parquet(path / table)


BASELINE, CELL, OTHER = make_cell(None), make_cell("static", "w8a8"), make_cell("static", "w4a8")


def test_a_new_folder_is_read_by_pandas_before_anything_has_finished(tmp_path):
    with open_folder(tmp_path / "deep" / "run"):
        for table in TABLES:
            frame = read(tmp_path / "deep" / "run", table)
            assert list(frame.columns) == SCHEMAS[table].names
            assert len(frame) == (table == "sweeps")


def test_a_finished_cell_is_a_row_with_the_very_values(tmp_path):
    with open_folder(tmp_path) as run:
        assert run.finished() == {}
        outcomes = (quality(CELL, sqnr_db=float("inf")), latency(CELL))
        run.commit_cells([finish(CELL, *outcomes)])
        assert set(run.finished()) == {CELL.cell_id}
    expected = row(finish(CELL, *outcomes), "spec-1")
    [stored] = read(tmp_path, "results").to_dict("records")
    assert list(stored) == list(expected)
    for name, value in expected.items():
        if isinstance(value, list):
            assert list(stored[name]) == value, name
            continue
        assert pd.isna(stored[name]) if value is None else stored[name] == value, name


def test_columns_have_the_types_of_the_schema(tmp_path):
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(CELL, quality(CELL), latency(CELL))])
    dtypes = read(tmp_path, "results").dtypes.astype(str)
    assert dtypes["started_at"] == "datetime64[us, UTC]"
    assert dtypes["weight_bits"] == "int16"
    assert dtypes["latency_median_ns"] == "int64"
    assert dtypes["cell_id"] in {"str", "object"}  # pandas 3 and pandas 2


def test_predictions_are_in_long_form_and_what_is_no_class_is_null(tmp_path):
    outcome = quality(CELL, n=3)
    predictions = replace(
        outcome.predictions,
        targets=outcome.predictions.targets * 0 - 1,
        scores=outcome.predictions.scores * float("nan"),
    )
    with open_folder(tmp_path) as run:
        run.commit_cells(
            [
                finish(BASELINE, quality(BASELINE, n=3)),
                finish(CELL, replace(outcome, predictions=predictions)),
            ]
        )
    frame = read(tmp_path, "predictions").set_index("cell_id")
    one, two = frame.loc[BASELINE.cell_id], frame.loc[CELL.cell_id]
    assert one["example_id"].tolist() == ["example-0", "example-1", "example-2"]
    assert one["target"].tolist() == one["predicted"].tolist() == [0, 1, 2]
    assert one["score"].tolist() == [1.0, 1.0, 1.0]
    assert two["target"].isna().all()
    assert two["score"].isna().all()
    assert two["predicted"].tolist() == [0, 1, 2]


def test_timings_are_kept_raw_and_in_order(tmp_path):
    with open_folder(tmp_path) as run:
        outcomes = (quality(CELL), latency(CELL, median_ns=7, ratio=2))
        run.commit_cells([finish(CELL, *outcomes, attempt=3)])
    frame = read(tmp_path, "samples")
    assert frame["position"].tolist() == [0, 1, 2, 3]
    assert frame["arm"].tolist() == ["baseline", "quantized", "quantized", "baseline"]
    assert [times.tolist() for times in frame["latency_ns"]] == [
        [14, 14, 14],
        [7, 7, 7],
        [7, 7, 7],
        [14, 14, 14],
    ]
    assert set(frame["attempt"]) == {3}


def test_an_environment_is_written_once_however_many_cells_share_it(tmp_path):
    for cell in (CELL, OTHER):
        with open_folder(tmp_path) as run:
            run.commit_cells([finish(cell, quality(cell))])
    [stored] = read(tmp_path, "environments").to_dict("records")
    assert stored["env_id"] == read(tmp_path, "results")["env_id"].unique().item()
    assert json.loads(stored["environment_json"]) == ENVIRONMENT


def test_a_resumed_run_knows_what_is_finished_and_reads_back_the_journal_exactly(tmp_path):
    entries = [
        JournalEntry(quality(BASELINE), 1),
        JournalEntry(quality(CELL, sqnr_db=float("inf"), cosine=None), 2),
    ]
    with open_folder(tmp_path) as run:
        run.commit_stages(entries)
        run.commit_cells([finish(BASELINE, entries[0].outcome, latency(BASELINE))])
    with open_folder(tmp_path) as run:
        assert set(run.finished()) == {BASELINE.cell_id}
        assert run.problems == []
        assert run.stage_outcomes() == {
            entry.outcome.cell_id: JournalEntry(
                replace(entry.outcome, predictions=None), entry.attempt
            )
            for entry in entries
        }


def test_only_a_quality_stage_that_ended_ok_can_be_journaled(tmp_path):
    with open_folder(tmp_path) as run:
        for outcome in (latency(CELL), failed(CELL, "failed", "boom")):
            with pytest.raises(ValueError, match="only a quality stage"):
                run.commit_stages([JournalEntry(outcome, 1)])
        assert run.stage_outcomes() == {}


@pytest.mark.parametrize("is_journaled", [True, False])
@pytest.mark.parametrize("is_resumed", [True, False])
def test_predictions_and_layers_are_written_once(tmp_path, is_journaled, is_resumed):
    outcome = quality(CELL, layers=[layer("conv1"), layer("conv1", "all_but")])
    run = open_folder(tmp_path)
    if is_journaled:
        run.commit_stages([JournalEntry(outcome, 1)])
    if is_resumed:
        run.close()
        run = open_folder(tmp_path)
        journal = run.stage_outcomes()
        outcome = journal[CELL.cell_id].outcome if is_journaled else outcome
    run.commit_cells([finish(CELL, outcome, latency(CELL))])
    run.close()
    assert len(read(tmp_path, "predictions")) == 360
    assert read(tmp_path, "layers")["mode"].tolist() == ["only", "all_but"]


def test_layers_are_in_long_form_and_what_no_law_is_known_for_is_null(tmp_path):
    found = [layer("conv1", bits="w4a8", sqnr_db=31.5), layer("fc", "all_but", parameters=7)]
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(CELL, quality(CELL, layers=found)), finish(OTHER, quality(OTHER))])
    only, all_but = read(tmp_path, "layers").to_dict("records")
    assert [only.pop("shape").tolist(), only.pop("same_bits").tolist()] == [[10, 100], ["conv1"]]
    assert only == {
        "cell_id": CELL.cell_id,
        "layer": "conv1",
        "parameters": 1_000,
        "macs": 9_000,
        "mode": "only",
        "bits": "w4a8",
        "sqnr_db": 31.5,
        "weight_sqnr_db": 28.5,
        "expected_weight_sqnr_db": 29.5,
        "kind": "linear",
        "weight": "conv1",
    }
    assert (all_but["layer"], all_but["mode"], all_but["parameters"]) == ("fc", "all_but", 7)
    assert pd.isna(all_but["weight_sqnr_db"])
    assert pd.isna(all_but["expected_weight_sqnr_db"])


def test_a_quality_stage_that_was_run_again_after_all_counts_from_then_on(tmp_path):
    again = quality(CELL, worse=9, started_at=quality(CELL).finished_at)
    with open_folder(tmp_path) as run:
        run.commit_stages([JournalEntry(quality(CELL), 1)])
        run.commit_stages([JournalEntry(again, 2)])
        latest = run.stage_outcomes()[CELL.cell_id]
        assert (latest.outcome, latest.attempt) == (
            replace(again, predictions=None),
            2,
        )
        run.commit_cells([finish(CELL, again)])
    last = read(tmp_path, "predictions").drop_duplicates(["cell_id", "example_id"], keep="last")
    assert last["score"].sum() == 350 - 9 + 1


def test_a_finished_baseline_that_is_journaled_again_leaves_its_predictions_alone(tmp_path):
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(BASELINE, quality(BASELINE))])
    with open_folder(tmp_path) as run:
        later = quality(BASELINE, started_at=quality(BASELINE).finished_at)
        run.commit_stages([JournalEntry(later, 1)])
        assert BASELINE.cell_id in run.stage_outcomes()
    assert len(read(tmp_path, "predictions")) == 360


def test_a_cell_twice_in_one_commit_is_refused_and_nothing_of_it_is_written(tmp_path):
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(CELL, quality(CELL))])
        with pytest.raises(ValueError, match=OTHER.cell_id):
            run.commit_cells([finish(OTHER, quality(OTHER))] * 2)
    assert read(tmp_path, "results")["cell_id"].tolist() == [CELL.cell_id]
    assert set(read(tmp_path, "predictions")["cell_id"]) == {CELL.cell_id}


def test_committing_nothing_writes_nothing(tmp_path):
    with open_folder(tmp_path) as run:
        before = sorted(tmp_path.rglob("*"))
        run.commit_cells([])
        run.commit_stages([])
        assert sorted(tmp_path.rglob("*")) == before


def test_a_cell_that_never_ran_has_a_row_too(tmp_path):
    with open_folder(tmp_path) as run:
        cell = make_cell("static", "w2a8", execution=None, reason="no 2-bit kernel")
        run.commit_cells([never_run(cell, "unsupported", cell.reason)])
    [stored] = read(tmp_path, "results").to_dict("records")
    found = (stored["status"], stored["error"], stored["attempt"])
    assert found == ("unsupported", "no 2-bit kernel", 0)
    assert pd.isna(stored["started_at"])


def test_statuses_are_counted_over_all_runs_into_the_folder(tmp_path):
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(CELL, quality(CELL)), finish(OTHER, failed(OTHER, "oom", "big"))])
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(BASELINE, quality(BASELINE))])
        assert Counter(run.finished().values()) == {"ok": 2, "oom": 1}


def test_parts_sort_by_time_even_when_the_clock_goes_back(tmp_path, monkeypatch):
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(BASELINE, quality(BASELINE))])
    monkeypatch.setattr("time.time_ns", lambda: 1)
    with open_folder(tmp_path) as run:
        run.commit_cells([finish(CELL, quality(CELL))])
        run.commit_cells([finish(OTHER, quality(OTHER))])
    parts = sorted((tmp_path / "results").glob("[0-9]*.parquet"))
    cells = [pd.read_parquet(part)["cell_id"].item() for part in parts]
    assert cells == [BASELINE.cell_id, CELL.cell_id, OTHER.cell_id]


def test_a_sweep_can_grow_and_each_spec_is_on_record(tmp_path):
    for digest in ("spec-1", "spec-2", "spec-1"):
        open_folder(tmp_path, digest=digest, planned_cells=7).close()
    frame = read(tmp_path, "sweeps")
    assert sorted(frame["spec_digest"]) == ["spec-1", "spec-2"]
    assert set(frame["spec_text"]) == {"sweep: digits\n"}


def test_the_folder_of_another_sweep_is_refused_and_left_as_it_is(tmp_path):
    open_folder(tmp_path).close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=r"belongs to the sweep 'digits'.*--out"):
        open_folder(tmp_path, sweep="imagenet")
    assert before == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    }


def test_a_folder_with_other_things_in_it_is_refused_and_left_as_it_is(tmp_path):
    for name in ("thesis.tex", "a", "b", "c"):
        (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match=r"not empty \(a, b, c, …\).*--out"):
        open_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_an_empty_folder_is_taken(tmp_path):
    open_folder(tmp_path).close()
    assert (tmp_path / "run.json").exists()


@pytest.mark.parametrize("below", [".", "results/x"])
def test_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunFolderError, match=r"file.*choose another --out"):
        open_folder(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_newer_layout_is_refused(tmp_path):
    open_folder(tmp_path).close()
    manifest = json.loads((tmp_path / "run.json").read_text())
    newer = json.dumps(manifest | {"schema_version": SCHEMA_VERSION + 1, "more": 1})
    (tmp_path / "run.json").write_text(newer)
    with pytest.raises(RunFolderError, match="upgrade QuantBench"):
        open_folder(tmp_path)
    assert (tmp_path / "run.json").read_text() == newer


def test_an_older_layout_is_not_added_to(tmp_path):
    open_folder(tmp_path).close()
    manifest = json.loads((tmp_path / "run.json").read_text())
    older = json.dumps(manifest | {"schema_version": SCHEMA_VERSION - 1})
    (tmp_path / "run.json").write_text(older)
    older_layout = rf"older layout {SCHEMA_VERSION - 1}.*reported on.*--out"
    with pytest.raises(RunFolderError, match=older_layout):
        open_folder(tmp_path)
    assert (tmp_path / "run.json").read_text() == older


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 1}', "\x00\xff"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    open_folder(tmp_path).close()
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunFolderError, match=r"run\.json is damaged"):
        open_folder(tmp_path)


@contextmanager
def as_nobody():
    """Root may write anywhere; these tests may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_to_all():
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_written_is_refused(open_to_all):
    open_to_all.chmod(0o555)
    with as_nobody():
        for path in (open_to_all, open_to_all / "new"):
            with pytest.raises(RunFolderError, match=r"Permission denied; choose another --out"):
                open_folder(path)
    assert list(open_to_all.iterdir()) == []
    open_to_all.chmod(0o755)


def test_a_run_folder_that_may_only_be_read_is_refused(open_to_all):
    open_folder(open_to_all / "run").close()
    for path in (open_to_all / "run", *(open_to_all / "run").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_nobody(), pytest.raises(RunFolderError, match="Permission denied; choose another"):
        open_folder(open_to_all / "run")


def test_a_file_system_that_takes_no_files_is_refused():
    for path in (Path("/proc"), Path("/proc/run")):
        with pytest.raises(RunFolderError, match="--out"):
            open_folder(path)
