import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from stored_cells import failed, latency, make_cell, quality

from qb_cluster.contracts.tolerance import Tolerance
from qb_cluster.errors import QueryError, RunFolderError
from qb_cluster.exit_codes import ExitCode
from qb_cluster.report import Wish, show_report
from qb_cluster.report.records import LISTS, with_lists_as_text
from qb_cluster.store.reading import read_results
from qb_cluster.terminal import output

BASELINE, CELL = make_cell(None), make_cell("static", "w8a8")
FILES = {"comparison.parquet", "comparison.csv", "comparison.md"}


@pytest.fixture
def run(store):
    """A run of a baseline, two cells of which one equals float, and one that failed."""
    equal, gone = make_cell("static", "w16a16"), make_cell("static", "w4a8")
    return store(
        (BASELINE, quality(BASELINE), latency(BASELINE, ratio=1.0)),
        (CELL, quality(CELL, p_value=1.25e-17, notes=["a", "b"]), latency(CELL)),
        (equal, quality(equal, worse=0, better=0, sqnr_db=math.inf), latency(equal)),
        (gone, failed(gone, "failed", 'it "failed", a|b\non two *lines*')),
    )


def written(path):
    return {file.name for file in (path / "report").iterdir()}


def test_the_first_screen_is_short_and_full_has_the_grids(run, show):
    short, full = show(run, full=False), show(run)
    assert len(short.splitlines()) < 24
    assert full.startswith(short.rstrip("\n").rpartition("\n")[0])
    assert "flips: 4 lost, 1 gained" in full
    assert "flips: 4 lost" not in short


def test_csv_parses_back_to_the_same_rows(run, show):
    printed = pd.read_csv(io.StringIO(show(run, format="csv")))
    parquet = with_lists_as_text(pd.read_parquet(run / "report" / "comparison.parquet"))
    assert list(printed.columns) == list(parquet.columns)
    assert len(printed) == 4
    for name in parquet:
        for one, other in zip(printed[name], parquet[name], strict=True):
            if pd.isna(one):  # CSV has no word for a text that is there and empty
                assert pd.isna(other) or other == "", name
            elif isinstance(one, float):
                assert one == pytest.approx(other, rel=1e-12), name
            else:
                assert one == other, name


def never(token):
    raise ValueError(token)


def test_json_has_answers_notes_and_every_cell_and_no_number_that_json_lacks(run, show):
    found = json.loads(show(run, format="json"), parse_constant=never)
    assert list(found) == ["answers", "notes", "cells"]
    parquet = pd.read_parquet(run / "report" / "comparison.parquet")
    assert [cell["cell_id"] for cell in found["cells"]] == parquet["cell_id"].tolist()
    assert {tuple(cell["notes"] or ()) for cell in found["cells"]} == {("a", "b"), ()}
    for cell, (_, row) in zip(found["cells"], parquet.iterrows(), strict=True):
        for name, value in cell.items():
            if name in LISTS:
                assert value == (None if row[name] is None else list(row[name])), name
                continue
            lost = pd.isna(row[name]) or row[name] == math.inf
            assert value is None if lost else value == row[name], name
    [answer] = found["answers"]
    assert answer["model"] == "digits-cnn"
    assert answer["headline"].startswith("digits-cnn on digits, n = 360 of 1,080: ")
    assert answer["threads"] == 1


def test_json_keeps_the_smallest_p_values(run, show):
    cells = json.loads(show(run, format="json", columns="cell_id,p_value"))["cells"]
    assert {"cell_id": CELL.cell_id, "p_value": 1.25e-17} in cells


def test_json_names_the_fastest_and_the_smallest_of_those_that_hold(store, show):
    path = store((CELL, quality(CELL, n=2000, right=1900, worse=0, better=0), latency(CELL)))
    [answer] = json.loads(show(path, format="json"))["answers"]
    assert answer["fastest_cell_id"] == answer["smallest_cell_id"] == CELL.cell_id


def test_json_of_a_run_without_a_number_is_json(store, show):
    path = store((make_cell(execution=None, reason="no kernel"),))
    found = json.loads(show(path, format="json"), parse_constant=never)
    assert found["answers"][0]["fastest_cell_id"] is None


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line.replace(r"\|", "").count("|") for line in lines]


def test_markdown_is_a_table_whatever_is_in_it(run, show):
    assert set(markdown_rows(show(run, format="md"))) == {12}
    text = show(run, format="md", columns="bits,error,notes")
    assert markdown_rows(text) == [4] * 6
    assert r'it "failed", a\|b<br>on two \*lines\*' in text


def test_columns_are_printed_as_asked_for_in_every_format(run, show):
    table = show(run, columns="bits,delta,pareto", sort="-weight_bits").splitlines()
    assert table[0].split() == ["bits", "delta", "pareto"]
    assert [line.split()[0] for line in table[1:5]] == ["f32", "w16a16", "w8a8", "w4a8"]
    printed = list(csv.reader(io.StringIO(show(run, format="csv", columns="bits,error"))))
    assert printed[0] == ["bits", "error"]
    assert len(printed) == 5
    cells = json.loads(show(run, format="json", columns="bits"))["cells"]
    assert cells == [{"bits": bits} for bits in ("f32", "w16a16", "w8a8", "w4a8")]


def test_a_condition_chooses_rows_in_every_format(run, show):
    only = {"where": "bits = 'w8a8'", "columns": "bits"}
    assert show(run, format="csv", **only).split() == ["bits", "w8a8"]
    assert json.loads(show(run, format="json", **only))["cells"] == [{"bits": "w8a8"}]
    text = show(run, where="bits = 'w8a8'", full=False)
    assert "static w8a8" in text
    assert "w16a16" not in text
    assert "no cell matches" in show(run, where="0", full=False)


def test_a_choice_of_rows_changes_no_verdict_and_no_file(run, show):
    show(run)
    before = (run / "report" / "comparison.csv").read_bytes()
    text = show(run, where="bits = 'w8a8'", sort="-delta", columns="p_adjusted", format="csv")
    assert (run / "report" / "comparison.csv").read_bytes() == before
    whole = pd.read_csv(io.BytesIO(before)).set_index("bits")
    assert float(text.split()[1]) == pytest.approx(whole.loc["w8a8", "p_adjusted"])


def test_rows_are_sorted_where_that_is_asked_for(run, show):
    text = show(run, sort="weight_bits", full=False)
    assert [text.index(bits) for bits in (" w4a8", " w8a8", " w16a16", "float")] == sorted(
        text.index(bits) for bits in (" w4a8", " w8a8", " w16a16", "float")
    )


@pytest.mark.parametrize(
    "wish", [{"where": "zzz = 1"}, {"sort": "zzz"}, {"columns": "zzz"}, {"where": "1; select 1"}]
)
def test_where_a_wish_is_wrong_nothing_is_printed_or_written(run, wish):

    console = Console(file=io.StringIO())
    with pytest.raises(QueryError):
        show_report(run, console, print, Wish(**wish))
    assert console.file.getvalue() == ""
    assert not (run / "report").exists()


def test_another_tolerance_or_adjustment_judges_again(run, show):
    def verdict(**wish):
        text = show(run, format="csv", columns="quality_verdict", where="bits = 'w8a8'", **wish)
        return text.split()[1]

    assert verdict() == "undecided"
    assert verdict(tolerance=Tolerance.parse("5 pt")) == "within"
    title = show(run, full=False, adjust="none").splitlines()[0]
    assert "Holm" not in title
    assert "Holm over 2 cells" in show(run, full=False).splitlines()[0]


def test_a_tolerance_replaces_all_rules_of_the_sweep(store, show):
    rules = [{"when": {"bits": ["w8a8"]}, "tolerance": None}]
    sweeps = {"rules": rules, "adjust": "none", "shares": ["accuracy"]}
    path = store((CELL, quality(CELL)), judgement=sweeps)
    assert "no tolerance is set for accuracy" in show(path, width=120, full=False)
    assert "1 of 1 configuration holds 5 pt" in show(
        path, full=False, tolerance=Tolerance.parse("5 pt")
    )


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_the_files_are_there_even_where_nobody_reads_what_is_printed(run, form):

    console = output()
    console.file = Broken()
    with pytest.raises(BrokenPipeError):
        show_report(run, console, lambda text: None, Wish(format=form))
    assert written(run) == FILES


# Bad input


def test_a_run_of_one_cell_without_a_baseline_is_answered(store, show):
    path = store((CELL, quality(CELL), latency(CELL)))
    assert "no configuration is shown to hold 1 pt (1 undecided)" in show(path, width=120)
    assert "Holm over 1 cell\n" in show(path)


def test_a_run_whose_baseline_failed_is_answered(store, show):
    path = store(
        (BASELINE, failed(BASELINE, "crashed", "boom")), (CELL, failed(CELL, "failed", "no float"))
    )
    assert "digits-cnn on digits: no verdict (1 failed)" in show(path, full=False)


def test_an_interrupted_run_says_what_is_missing(store, show):
    path = store((CELL, quality(CELL)), planned_cells=1_234)
    note = "Unfinished: 1,233 of 1,234 planned cells have no row yet; run `qb run` again."
    assert note in show(path, full=False)
    assert note in json.loads(show(path, format="json"))["notes"]


def test_a_run_of_an_older_layout_is_answered(run, show):
    newer = {"outputs_digest", "integer_mac_share", "integer_layer_mac_share", "dataset_examples"}
    for part in (run / "results").glob("[0-9]*.parquet"):
        rows = pq.read_table(part).drop_columns(list(newer))
        metadata = rows.schema.metadata | {b"qb_cluster.schema_version": b"1"}
        for name, text in {"notes": "a, b; c", "latency_flags": "", "affinity": "0,1"}.items():
            where = rows.schema.get_field_index(name)  # lists were text
            rows = rows.set_column(where, name, pa.array([text] * len(rows), pa.string()))
        pq.write_table(rows.replace_schema_metadata(metadata), part)
    manifest = json.loads((run / "run.json").read_text())
    del manifest["judgement"]
    (run / "run.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    text = show(run, full=False)
    assert "digits-cnn on digits, n = 360: " in text
    assert "Holm over 2 cells" in text
    assert written(run) == FILES
    cells = json.loads(show(run, format="json"))["cells"]
    assert {tuple(cell["notes"]) for cell in cells} == {("a, b", "c")}
    assert {tuple(cell["latency_flags"]) for cell in cells} == {()}
    assert set(read_results(run)["affinity"].map(tuple)) == {(0, 1)}


DAMAGED = [
    "text",
    [1],
    {"rules": 3},
    {"rules": []},
    {"rules": [{"when": {}, "tolerance": 1}]},
    {"rules": [{"when": {}, "tolerance": "banana"}]},
    {"rules": [{"when": {"model": 3}, "tolerance": "1 pt"}]},
    {"rules": [{"when": None, "tolerance": "1 pt"}]},
]


@pytest.mark.parametrize("judgement", DAMAGED)
def test_a_damaged_judgement_is_told_with_where_and_what_to_do(store, show, judgement):
    path = store((CELL, quality(CELL)))
    if isinstance(judgement, dict) and judgement != {"rules": []}:
        judgement |= {"adjust": "holm", "shares": []}
    manifest = json.loads((path / "run.json").read_text()) | {"judgement": judgement}
    (path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError) as raised:
        show(path)
    assert raised.value.exit_code == ExitCode.CANNOT_RUN
    assert f"{path}: what run.json says under 'judgement' cannot be read" in str(raised.value)
    assert str(raised.value).endswith("run `qb run` with its spec again")


def test_a_tolerance_of_a_share_needs_a_unit(run, show):
    with pytest.raises(QueryError, match=r"--tolerance 1: of what\? write 1 pt .*, or 1 %"):
        show(run, tolerance=Tolerance.parse("1"))


# Real processes


def qb(*arguments, env=None):
    return subprocess.run(
        [str(Path(sys.executable).parent / "qb"), *map(str, arguments)],
        env=os.environ | {"COLUMNS": "80"} | (env or {}),
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_a_process_says_the_answer_on_stdout_and_the_paths_on_stderr(run):
    done = qb("report", run)
    assert done.returncode == 0
    assert done.stdout.decode().startswith("digits · accuracy · verdicts at 95 %")
    assert "wrote" not in done.stdout.decode()
    wrote = [line.rpartition("/")[2] for line in done.stderr.decode().splitlines()]
    assert set(wrote) == FILES
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("options", ["", "--full", "--format csv"])
def test_a_reader_that_has_seen_enough_ends_it_well_with_all_files(run, options):
    command = f"'{Path(sys.executable).parent / 'qb'}' report '{run}' {options} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
    assert written(run) == FILES


@pytest.mark.parametrize("options", [(), ("--full",), ("--format", "json")])
def test_a_stream_that_speaks_ascii_alone_is_no_error(run, options):
    done = qb("report", run, *options, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"digits-cnn on digits" in done.stdout
    if "json" in options:
        assert b"?" not in done.stdout, "an escape loses nothing"
    else:
        assert b"x faster" in done.stdout
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("columns", ["60", "100"])
def test_the_width_of_the_terminal_is_kept(run, columns):
    lines = qb("report", run, "--full", env={"COLUMNS": columns}).stdout.decode().splitlines()
    assert max(map(len, lines)) <= int(columns)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tolerance", "1"], "--tolerance 1: of what?"),
        (["--tolerance", "banana"], "'banana' is not a tolerance"),
        (["--tolerance=-1pt"], "a tolerance is a positive number, not -1"),
        (["--where", "backnd = 1"], "did you mean 'backend'?"),
    ],
)
def test_a_wrong_option_is_one_clear_message_and_exit_code_2(run, options, said):
    done = qb("report", run, *options)
    assert done.returncode == ExitCode.CANNOT_RUN
    assert said in done.stderr.decode()
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert not (run / "report").exists()


@pytest.mark.parametrize("options", [[], ["--where", "1"]])
def test_a_folder_that_is_not_there_is_told_and_not_made(tmp_path, options):
    done = qb("report", tmp_path / "nowhere", *options)
    assert done.returncode == ExitCode.CANNOT_RUN
    assert "nowhere does not exist; give the folder that `qb run` wrote" in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
