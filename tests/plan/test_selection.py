"""Cells to run again: picked by their last status, by their id, or by a pattern of their name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qb_cluster.contracts import STATUSES
from qb_cluster.plan.selection import FAILURES, cell_name, rerun_filter, unmatched


@pytest.fixture
def cells(cells_of, spec_text):
    return cells_of(
        spec_text + "devices: [cpu, {name: pi, labels: {qb/board: rpi5}, threads: 4}]\n"
    )


def picked(cells, *patterns, status="ok"):
    is_rerun = rerun_filter(patterns)
    return [cell_name(cell) for cell in cells if is_rerun(cell, status)]


def test_failed_is_every_kind_of_failure(cells):
    is_rerun = rerun_filter(["failed"])
    picked = {status for status in STATUSES if is_rerun(cells[0], status)}
    assert picked == set(FAILURES) == {"failed", "timeout", "oom", "crashed"}


@pytest.mark.parametrize("status", sorted(set(STATUSES) - {"failed"}))
def test_any_other_status_is_itself_alone(cells, status):
    is_rerun = rerun_filter([status])
    assert [s for s in STATUSES if is_rerun(cells[0], s)] == [status]


def test_a_cell_id_is_that_cell_alone(cells):
    is_rerun = rerun_filter([cells[3].cell_id])
    assert [cell for cell in cells if is_rerun(cell, "ok")] == [cells[3]]


def test_a_name_is_what_the_plan_shows(cells):
    names = [cell_name(cell) for cell in cells]
    assert len(set(names)) == len(names)
    assert names[0] == "stub_plugins:small/stub_plugins:data/stub_plugins:Half/cpu/float/f32"
    assert {name.split("/")[3] for name in names} == {"cpu", "pi"}
    for name in names:
        assert picked(cells, name) == [name]


@pytest.mark.parametrize(
    ("pattern", "is_meant"),
    [
        ("stub_plugins:small", lambda part: part[0] == "stub_plugins:small"),
        ("*:small/*/*Half/pi", lambda part: part[0] == "stub_plugins:small" and part[3] == "pi"),
        ("*/pi/*", lambda part: part[3] == "pi"),
        ("*/w2", lambda part: part[5] == "w2"),
        ("*/w8a[48]", lambda part: part[5] == "w8a8"),
        ("*/float", lambda part: part[4] == "float"),
        ("*/STATIC/*", lambda part: False),
        ("stub_plugins", lambda part: False),
    ],
)
def test_a_pattern_matches_from_the_left_as_many_parts_as_it_has(cells, pattern, is_meant):
    names = [cell_name(cell) for cell in cells]
    assert picked(cells, pattern) == [name for name in names if is_meant(name.split("/"))]


def test_any_of_several_patterns_will_do(cells):
    expected = {*picked(cells, "*/w2"), *picked(cells, "*/w8"), cell_name(cells[0])}
    assert set(picked(cells, "*/w2", cells[0].cell_id, "*/w8", "timeout")) == expected
    assert len(picked(cells, "*/w2", "timeout", status="timeout")) == len(cells)


def test_no_pattern_picks_nothing(cells):
    for status in STATUSES:
        assert picked(cells, status=status) == []
    assert unmatched([], cells) == []


def test_labels_with_brackets_and_slashes_are_meant_as_they_are_written(
    cells_of, spec_text, tmp_path, monkeypatch
):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.onnx").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    entry = "{name: weight_only, options: {granularity: per_tensor}}"
    cells = cells_of(
        spec_text.replace("stub_plugins:small", "nets/net.onnx").replace("weight_only", entry)
    )
    whole = next(name for name in map(cell_name, cells) if "[granularity=per_tensor]/w8" in name)
    assert picked(cells, whole) == [whole]
    assert whole in picked(cells, whole.removesuffix("/w8"))
    assert picked(cells, "nets/net.onnx") == picked(cells, "nets/*") != []
    assert unmatched([whole, "nets/net.onnx", "nets/net.onnx/*/w8"], cells) == []


def test_patterns_that_match_something_and_statuses_are_no_news(cells):
    patterns = ["failed", "kernel_mismatch", cells[-1].cell_id, "*:small/*/w2", "*"]
    assert unmatched(patterns, cells) == []


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("faild", "'faild' is no status, id or label of this plan; did you mean 'failed'?"),
        (
            "stub_plugins:smal/*",
            "'stub_plugins:smal' is no label of this plan; did you mean 'stub_plugins:small'",
        ),
        ("*/sttic/w8a8", "'sttic' is no label of this plan; did you mean 'static'?"),
        ("zzz", "'zzz' is no status, id or label of this plan; `qb plan` lists them"),
        (
            "*/static/w8",
            "none is all of this at once; a cell is model/dataset/backend/device/scheme/bits",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_told_with_what_is_near(cells, pattern, why):
    (sentence,) = unmatched(["*", pattern, pattern, "failed"], cells)
    assert sentence.startswith(f"'{pattern}' matches no cell: {why}")


def test_an_id_of_no_cell_is_told(cells):
    (sentence,) = unmatched(["0123456789abcdef"], cells)
    assert sentence == "no cell of this plan has the id '0123456789abcdef'; `qb plan` lists them"


def test_a_plan_is_read_no_further_than_needed(cells):
    taken = []

    def plan():
        for cell in cells:
            taken.append(cell)
            yield cell

    assert unmatched(["failed", "oom"], plan()) == []
    assert taken == []
    assert unmatched([cells[1].cell_id, "stub_plugins:small"], plan()) == []
    assert taken == cells[:2]


@given(st.lists(st.text(max_size=12), max_size=3))
def test_any_text_is_a_pattern(example_cells, patterns):
    def meant(*some):
        return {c.cell_id for c in example_cells if rerun_filter(some)(c, "")}

    assert meant(*patterns) == {cell_id for pattern in patterns for cell_id in meant(pattern)}
    lost = {p for p in patterns if p not in STATUSES and not meant(p)}
    assert len(unmatched(patterns, example_cells)) == len(lost)


@pytest.fixture(scope="module")
def example_cells(load):
    from qb_cluster.plan import expand

    text = (
        "sweep: t\nmodels: ['json:m']\ndatasets: ['json:d']\nschemes: [weight_only]\n"
        "bits: [w8, w4]\nbackends: ['stub_plugins:Half']\n"
    )
    return list(expand(load(text)))
