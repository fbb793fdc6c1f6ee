import math

import pandas as pd
import pytest
from stored_cells import failed, latency, make_cell, quality, results_frame

from qb_cluster.contracts.judgement import Judgement
from qb_cluster.errors import QueryError
from qb_cluster.report.comparison import compare
from qb_cluster.report.query import in_order_of, some_columns, where


@pytest.fixture(scope="module")
def cells():
    ended = []
    for backend in ("tflite", "pytorch"):
        baseline = make_cell(None, backend=backend)
        ended.append((baseline, quality(baseline), latency(baseline, ratio=1.0)))
        for bits, sqnr_db in (("w8", math.inf), ("w4", 20.0), ("w2", None)):
            cell = make_cell("weight_only", bits, backend=backend)
            found = quality(cell, worse=0, better=0, sqnr_db=sqnr_db)
            ended.append((cell, found, latency(cell)) if bits != "w2" else (cell, found))
    gone = make_cell("dynamic", "w8a8")
    ended.append((gone, failed(gone, "crashed", "it's gone")))
    return compare(results_frame(*ended), Judgement())


def bits(found):
    return found["bits"].tolist()


def test_rows_that_a_condition_is_true_of_are_kept_as_they_are(cells):
    found = where(cells, "backend = 'tflite' and bits in ('w8', 'w4')")
    assert bits(found) == ["w8", "w4"]
    expected = cells[(cells["backend"] == "tflite") & cells["bits"].isin(["w8", "w4"])]
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True))


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("1", 9),
        ("0", 0),
        ("NULL", 0),
        ("status <> 'ok'", 1),
        ("value is null", 1),
        ("value > 0", 8),  # of null nobody knows
        ("not value > 0", 0),
        ("sqnr_db is not null", 4),
        ("pareto in (0, 1)", 9),
        ("not pareto is null", 9),
        ("status <> 'partial'", 9),
        ("sqnr_db > 1e300", 2),
        ("backend LIKE 'TF%'", 5),
        ("bits GLOB 'w*' and Backend = 'pytorch'", 3),
        ("error = 'it''s gone'", 1),
        ('backend = "tflite"', 5),  # SQLite takes it for a text
        ("\"backend\" = 'tflite'", 5),
        ("backend = 'tflite' -- a comment", 5),
        ("artifact_bytes < (select max(artifact_bytes) from comparison)", 6),
        ("examples = 360 or 1", 9),
    ],
)
def test_conditions_are_sql(cells, condition, count):
    assert len(where(cells, condition)) == count


def test_lists_are_text_in_conditions_and_orders_and_lists_in_what_is_found():
    cell, other = make_cell("weight_only", "w8"), make_cell("weight_only", "w4")
    ended = [(cell, quality(cell, notes=["b", "c"])), (other, quality(other, notes=["a, a"]))]
    cells = compare(results_frame(*ended), Judgement())
    assert bits(where(cells, "notes = 'b; c'")) == ["w8"]
    [found] = where(cells, "notes like '%, a%'")["notes"]
    assert list(found) == ["a, a"]
    assert bits(in_order_of(cells, "notes")) == ["w4", "w8"]
    assert bits(in_order_of(cells, "-notes")) == ["w8", "w4"]


def test_booleans_infinities_and_nulls_survive(cells):
    found = where(cells, "scheme = 'weight_only'")
    assert found.dtypes.equals(cells.dtypes)
    assert found["sqnr_db"].tolist()[0] == math.inf
    assert found["sqnr_db"].isna().sum() == 2
    assert found["pareto"].dtype == bool
    assert found["latency_median_ns"].tolist()[-1] is pd.NA


def test_an_index_of_its_own_does_not_choose_other_rows(cells):
    shuffled = cells.sample(frac=1, random_state=1)
    found = where(shuffled, "bits = 'w4'")
    assert found["cell_id"].tolist() == shuffled.loc[shuffled["bits"] == "w4", "cell_id"].tolist()


def refused(cells, condition):
    with pytest.raises(QueryError) as raised:
        where(cells, condition)
    message = str(raised.value)
    assert message.startswith("--where")
    assert "\n" not in message
    return message


def test_a_column_that_is_not_there_lists_those_that_are_and_suggests_one(cells):
    message = refused(cells, "backnd = 'tflite'")
    assert "no column 'backnd'; did you mean 'backend'? There are: cell_id, " in message
    assert all(name in message for name in cells.columns)
    assert "no column 'zzz'. There are: cell_id, " in refused(cells, "zzz = 1")


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("", "syntax error"),
        ("backend =", "syntax error"),
        ("backend = 'tflite", 'unrecognized token: "\'tflite)"'),
        ("delta in (1", "incomplete input"),
        ("sum(delta) > 0", "misuse of aggregate"),
        ("bits REGEXP 'w'", "no such function"),
        ("bits = ?", "bindings"),
        ("1; drop table comparison", "syntax error"),
        ("1); drop table comparison; select (1", "one statement"),
        ("\x00", "null character"),
    ],
)
def test_a_broken_condition_says_what_is_wrong_and_how_to_write_one(cells, condition, what):
    message = refused(cells, condition)
    assert what in message
    assert "write an SQL condition, such as \"backend = 'tflite' and bits <> 'w2'\"" in message


@pytest.mark.parametrize(
    "condition",
    [
        "exists (select * from sqlite_master)",
        "1) union select 1 from sqlite_master where (1",
        "(select count(*) from pragma_table_info('comparison'))",
        "load_extension('x')",
        "(with recursive t(x) as (select 1 union all select x from t) select 1 from t)",
    ],
)
def test_what_is_more_than_a_condition_is_refused(cells, condition):
    assert "only conditions are allowed" in refused(cells, condition)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from comparison",
        "drop table comparison",
        "attach 'x.db' as x",
        "pragma writable_schema = 1",
        "vacuum into 'x.db'",
        "(delete from comparison returning 1)",
    ],
)
def test_a_statement_is_no_condition_and_leaves_no_file(cells, statement, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(cells, statement)
    refused(cells, f"1); {statement}; select (1")
    assert list(tmp_path.iterdir()) == []


def test_no_condition_shows_a_row_twice(cells):
    assert len(where(cells, "1) union all select row_number from comparison where (1")) == 9


def test_rows_are_sorted_by_columns_and_a_dash_descends(cells):
    found = in_order_of(cells, "-weight_bits, backend")
    assert found["weight_bits"].is_monotonic_decreasing
    assert found["backend"].tolist()[:2] == ["pytorch", "tflite"]
    assert in_order_of(cells, "weight_bits")["weight_bits"].is_monotonic_increasing


@pytest.mark.parametrize("columns", ["value", "-value", "latency_median_ns", "-sqnr_db"])
def test_what_is_unknown_comes_last_whichever_way(cells, columns):
    name = columns.removeprefix("-")
    found = in_order_of(cells, columns)[name]
    unknown = found.isna().tolist()
    assert any(unknown)
    assert unknown == sorted(unknown)


def test_equal_rows_stay_in_order_and_an_infinity_is_the_largest(cells):
    found = in_order_of(cells, "-sqnr_db")
    assert found["sqnr_db"].tolist()[:2] == [math.inf] * 2
    assert found["backend"].tolist()[:4] == ["pytorch", "tflite"] * 2


def test_columns_are_given_in_the_order_asked_for_each_once(cells):
    assert list(some_columns(cells, "bits, model,bits").columns) == ["bits", "model"]


@pytest.mark.parametrize(("ask", "option"), [(in_order_of, "--sort"), (some_columns, "--columns")])
@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ("speedupp", "no column 'speedupp'; did you mean 'speedup'? There are: cell_id, "),
        ("model,,bits", "no column ''. There are: "),
        ("", "no column ''. There are: "),
        ("model bits", "no column 'model bits'"),
    ],
)
def test_unknown_columns_are_told(cells, ask, option, columns, what):
    with pytest.raises(QueryError) as raised:
        ask(cells, columns)
    assert str(raised.value).startswith(f"{option}: {what}")
