"""What a run keeps to, on a local folder and on an object store alike."""

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from object_store import names, read, take_away_lock, write
from stored_cells import failed, finish, latency, layer, make_cell, never_run, quality

from qb_cluster.contracts import Content
from qb_cluster.errors import RunFolderError
from qb_cluster.report import show_report
from qb_cluster.report.agreement import agreement
from qb_cluster.storage import StorageError
from qb_cluster.storage import open_folder as folder_of
from qb_cluster.storage.object_folder import ObjectFolder
from qb_cluster.storage.object_lock import ObjectLock
from qb_cluster.store import merging
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.reading import read_predictions, read_results, read_run
from qb_cluster.store.run_folder import RunFolder
from qb_cluster.store.tables import TABLES
from qb_cluster.worker.artifact_folder import ArtifactFolder

N = 5
BASELINE, CELL, OTHER = make_cell(None), make_cell("static", "w8a8"), make_cell("static", "w4a8")
LAYERS = [layer("conv1"), layer("conv1", "all_but")]


def open_folder(place, sweep="digits"):
    return RunFolder.open(place, sweep=sweep, spec_text="sweep: digits", spec_digest="spec")


def good(cell, *, later=0, **values):
    begin = quality(cell).started_at
    started_at = begin.replace(year=begin.year + later)
    return quality(
        cell, n=N, right=5, worse=1, better=0, layers=LAYERS, started_at=started_at, **values
    )


def whole(cell, **options):
    return finish(cell, good(cell, **options), latency(cell))


def counts(place, table):
    return Counter(read(place, table)["cell_id"])


def test_a_run_is_read_by_anybody_from_its_start_to_its_end(place):
    with open_folder(place) as run:
        assert [len(read(place, table)) for table in TABLES] == [0, 0, 0, 0, 0, 0, 1]
        run.commit_stages([JournalEntry(good(BASELINE), 1)])
        run.commit_cells([whole(BASELINE), whole(CELL), never_run(OTHER, "unsupported", "no")])
        assert len(read(place, "results")) == 3
    assert Counter(read(place, "results")["status"]) == {"ok": 2, "unsupported": 1}
    assert counts(place, "predictions") == {BASELINE.cell_id: N, CELL.cell_id: N}
    assert counts(place, "layers") == {BASELINE.cell_id: 2, CELL.cell_id: 2}
    assert counts(place, "samples") == {BASELINE.cell_id: 4, CELL.cell_id: 4}
    assert len(read(place, "environments")) == 1


def test_a_resumed_run_knows_statuses_content_keys_and_the_journal(place):
    content = Content("model-digest", "dataset-digest", "backend-digest", "metric-digest")
    outcome = good(BASELINE)
    outcome = replace(outcome, quality=replace(outcome.quality, content=content))
    with open_folder(place) as run:
        run.commit_stages([JournalEntry(outcome, 2)])
        run.commit_cells(
            [whole(CELL, content_key="key"), finish(OTHER, failed(OTHER, "oom", "big"))]
        )
        assert run.content_keys() == {}  # of rows that were there when it was opened
    with open_folder(place) as run:
        assert run.problems == []
        assert run.finished() == {CELL.cell_id: "ok", OTHER.cell_id: "oom"}
        assert run.content_keys() == {CELL.cell_id: "key"}
        read_back = replace(outcome, predictions=None, layers=())
        assert run.stage_outcomes() == {BASELINE.cell_id: JournalEntry(read_back, 2)}


def test_a_new_row_takes_the_place_of_the_old_one_with_all_that_belonged_to_it(place):
    with open_folder(place) as run:
        run.commit_stages([JournalEntry(good(CELL), 1)])
        run.commit_cells([whole(BASELINE), whole(CELL), whole(OTHER)])
    with open_folder(place) as run:
        again = good(CELL, later=1, value=0.25)
        run.commit_cells([finish(CELL, again, latency(CELL, median_ns=7), attempt=3)])
        assert counts(place, "results") == dict.fromkeys((BASELINE.cell_id, *ids(CELL, OTHER)), 1)
        results = read(place, "results").set_index("cell_id")
        assert results.loc[CELL.cell_id, "value"] == 0.25
        samples = read(place, "samples").set_index("cell_id")
        assert set(samples.loc[CELL.cell_id, "attempt"]) == {3}
        assert set(samples.loc[OTHER.cell_id, "attempt"]) == {1}
        for table, each in (("predictions", N), ("layers", 2), ("samples", 4)):
            assert counts(place, table) == dict.fromkeys(
                (BASELINE.cell_id, *ids(CELL, OTHER)), each
            )
        assert run.stage_outcomes() == {}
    with open_folder(place) as run:
        assert run.problems == []
        assert len(run.finished()) == 3


def test_a_row_without_numbers_leaves_nothing_of_the_one_it_replaces(place):
    with open_folder(place) as run:
        run.commit_cells([whole(BASELINE), whole(CELL)])
        run.commit_cells([finish(CELL, failed(CELL, "crashed", "it died"))])
        assert run.finished()[CELL.cell_id] == "crashed"
    assert counts(place, "results") == dict.fromkeys(ids(BASELINE, CELL), 1)
    for table in ("predictions", "layers", "samples"):
        assert set(read(place, table)["cell_id"]) == {BASELINE.cell_id}


def test_a_stage_that_was_run_again_replaces_what_it_left_before_and_goes_into_the_new_row(place):
    with open_folder(place) as run:
        run.commit_stages([JournalEntry(good(CELL), 1)])
        run.commit_cells([whole(CELL)])
        again = good(CELL, later=1, value=0.25)
        run.commit_stages([JournalEntry(again, 2)])
        assert counts(place, "stages") == {CELL.cell_id: 1}
        assert counts(place, "predictions") == {CELL.cell_id: N}
        journaled = run.stage_outcomes()[CELL.cell_id].outcome
        run.commit_cells([finish(CELL, journaled, latency(CELL))])
    assert counts(place, "stages") == {CELL.cell_id: 1}
    assert counts(place, "predictions") == {CELL.cell_id: N}
    assert counts(place, "layers") == {CELL.cell_id: 2}
    assert counts(place, "samples") == {CELL.cell_id: 4}
    assert read(place, "results")["value"].tolist() == [0.25]


def test_a_stage_that_is_journaled_twice_is_there_once(place):
    entry = JournalEntry(good(CELL), 1)
    with open_folder(place) as run:
        run.commit_stages([entry, entry])
        run.commit_stages([entry])
    assert counts(place, "stages") == {CELL.cell_id: 1}
    assert counts(place, "predictions") == {CELL.cell_id: N}


@pytest.fixture
def merge_at_3(monkeypatch):
    monkeypatch.setattr(merging, "_TIERS", (2, 9))
    monkeypatch.setattr("qb_cluster.store.run_folder.MANY", 3)
    monkeypatch.setattr("qb_cluster.store.run_folder.MANY_AT_THE_END", 3)


def test_small_parts_are_merged_as_they_come_and_no_row_is_lost_or_moved(place, merge_at_3):
    cells = [make_cell("static", "w8a8", seed=seed) for seed in range(12)]
    with open_folder(place) as run:
        for cell in cells:
            run.commit_cells([finish(cell, quality(cell, n=1, right=1, worse=0, better=0))])
            assert counts(place, "results") == dict.fromkeys(ids(*cells[: len(run.finished())]), 1)
    assert read(place, "results")["cell_id"].tolist() == list(ids(*cells))
    assert read(place, "predictions")["cell_id"].tolist() == list(ids(*cells))
    assert len(names(place, "results")) < 6
    with open_folder(place) as run:
        assert run.problems == []
        assert list(run.finished()) == list(ids(*cells))
        run.commit_cells([finish(cells[4], quality(cells[4], n=1, value=0.25))])
    assert counts(place, "results") == dict.fromkeys(ids(*cells), 1)
    assert counts(place, "predictions") == dict.fromkeys(ids(*cells), 1)


def test_what_is_damaged_or_foreign_is_named_and_never_merged_away(place, merge_at_3):
    with open_folder(place) as run:
        run.commit_cells([whole(BASELINE)])
    damaged = f"results/{2 * 10**18:020d}-0123abcd.parquet"
    strangers = {"results/notes.txt": b"do not forget", damaged: b"PAR1", "samples/x.parquet": b"P"}
    for name, data in strangers.items():
        write(place, name, data)
    with open_folder(place) as run:
        said = "\n".join(run.problems)
        assert all(name in said for name in strangers)
        assert said.count("\n") == 2
        for seed in range(6):
            cell = make_cell("static", "w8a8", seed=seed)
            run.commit_cells([finish(cell, good(cell))])
        run.commit_cells([whole(BASELINE, later=1)])
    for name, data in strangers.items():
        assert folder_of(place).read(name) == data
    assert len(read_results(place)) == 7
    assert len(read_run(place).problems) == 2


def test_cells_of_a_damaged_part_run_again_and_what_they_left_elsewhere_is_replaced(place):
    with open_folder(place) as run:
        run.commit_cells([whole(BASELINE)])
        run.commit_cells([whole(CELL)])
    part = f"results/{max(names(place, 'results')[:-1])}"
    write(place, part, folder_of(place).read(part)[:-8])
    with open_folder(place) as run:
        assert set(run.finished()) == {BASELINE.cell_id}
        run.commit_cells([whole(CELL)])
    for table, each in (("predictions", N), ("layers", 2), ("samples", 4)):
        assert counts(place, table) == dict.fromkeys(ids(BASELINE, CELL), each)


def test_a_report_is_written_beside_the_results(place, console):
    with open_folder(place) as run:
        run.commit_cells([whole(BASELINE), whole(CELL)])
    told = []
    show_report(place, console, told.append)
    files = [line.removeprefix("wrote ") for line in told if line.startswith("wrote ")]
    assert files
    assert sorted(file.rpartition("/")[2] for file in files) == names(place, "report")
    assert "digits-cnn" in folder_of(place).read("report/comparison.md").decode()


def test_artifacts_and_outputs_are_kept_beside_the_results(place):
    with open_folder(place) as run:
        artifacts = ArtifactFolder(run.artifacts)
        outputs = np.arange(6, dtype=np.float32).reshape(2, 3)
        digest = artifacts.put_outputs(outputs)
        artifacts.put_twin("twin", outputs + 1)
    assert names(place, "artifacts") == sorted([f"{digest}.npy", "twin-twin.npy"])
    again = ArtifactFolder(folder_of(place).folder("artifacts"))
    assert (again.get_outputs(digest) == outputs).all()
    assert (again.get_twin("twin") == outputs + 1).all()
    assert again.get_twin("other") is None


def test_predictions_and_outputs_of_backends_are_compared(place):
    cells = [make_cell("weight_only", "w8", backend=name) for name in ("tflite", "pytorch")]
    with open_folder(place) as run:
        kept = [
            ArtifactFolder(run.artifacts).put_outputs(np.ones((N, 3), np.float32) * k)
            for k in (1, 2)
        ]
        run.commit_cells(
            [
                finish(cell, quality(cell, n=N, right=5, worse=1, better=0, outputs_digest=digest))
                for cell, digest in zip(cells, kept, strict=True)
            ]
        )
    frame = agreement(read_run(place))
    assert frame["top1_agreement"].tolist() == [1.0, 1.0]
    assert frame["sqnr_db"].tolist() == pytest.approx([10 * np.log10(4), 0.0], abs=1e-6)
    found = read_predictions(folder_of(place), [cells[1].cell_id])
    assert found[cells[1].cell_id]["predicted"].to_pylist() == [0, 1, 2, 3, 0]


def test_the_folder_of_another_sweep_of_strangers_or_of_a_later_version_is_refused(place):
    open_folder(place).close()
    with pytest.raises(RunFolderError, match=r"belongs to the sweep 'digits'.*--out"):
        open_folder(place, "imagenet")
    manifest = json.loads(folder_of(place).read("run.json"))
    write(place, "run.json", json.dumps(manifest | {"schema_version": 99}).encode())
    for use in (open_folder, read_run):
        with pytest.raises(RunFolderError, match="upgrade QuantBench"):
            use(place)
    folder_of(place).delete("run.json")
    with pytest.raises(RunFolderError, match=r"not empty \(\.?[a-z]+, .*, …\); choose another"):
        open_folder(place)
    with pytest.raises(RunFolderError, match="is no run folder"):
        read_run(place)


def test_reading_where_nothing_is_says_so(place):
    with pytest.raises(RunFolderError, match="does not exist"):
        read_run(place)


def ids(*cells):
    return tuple(cell.cell_id for cell in cells)


def test_text_that_is_a_place_and_a_path_are_the_same(tmp_path):
    with open_folder(tmp_path) as run:
        run.commit_cells([whole(CELL)])
    pd.testing.assert_frame_equal(read_results(tmp_path), read_results(str(tmp_path)))


@pytest.fixture
def quick_locks(monkeypatch):
    monkeypatch.setattr(ObjectFolder, "lock", lambda folder: ObjectLock.take(folder, 0.05, 0.6))


def test_a_second_driver_is_refused_and_told_who_has_the_run(place, quick_locks):
    with open_folder(place) as run:
        with pytest.raises(RunFolderError, match=rf"in use .*\(process {os.getpid()} on .*--out"):
            open_folder(place)
        run.commit_cells([whole(CELL)])
    with open_folder(place) as run:
        assert run.finished() == {CELL.cell_id: "ok"}


def test_a_driver_that_has_lost_its_lock_commits_nothing_more(s3_place, quick_locks):
    with open_folder(s3_place) as run:
        take_away_lock(folder_of(s3_place))
        with pytest.raises(RunFolderError, match="another driver may have this run"):
            run.commit_cells([whole(CELL)])
    assert read(s3_place, "results").empty


def test_a_bucket_that_is_not_there_is_told_without_a_traceback(s3_place):
    nowhere = s3_place.replace("//bucket-", "//no-bucket-")
    with pytest.raises(RunFolderError, match=r"cannot be used.*no such bucket.*another --out"):
        open_folder(nowhere)
    with pytest.raises(RunFolderError, match="does not exist"):
        read_run(nowhere)


def test_a_store_that_fails_while_a_run_is_read_does_not_pass_for_damaged_parts(
    s3_place, monkeypatch
):
    with open_folder(s3_place) as run:
        run.commit_cells([whole(CELL)])

    def fail(folder, name):
        raise StorageError("the store is on fire")

    monkeypatch.setattr(ObjectFolder, "open", fail)
    for use in (read_run, open_folder):
        with pytest.raises(RunFolderError, match="on fire"):
            use(s3_place)
