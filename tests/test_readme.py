"""README's first screen and its example are what a reader gets."""

import re
from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len
from stored_cells import finish, latency, make_cell, quality

from qb_cluster.report import Wish, show_report
from qb_cluster.report.answer_table import LEGEND, SCREEN_LINES
from qb_cluster.store.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = 80


def blocks(text, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def screen():
    (block,) = [block for block in blocks(README) if LEGEND in block]
    return block.splitlines()


def test_the_demo_ends_in_one_screen_that_names_what_holds_what_is_fastest_and_what_is_smallest(
    screen,
):
    assert len(screen) <= SCREEN_LINES
    assert max(map(cell_len, screen)) <= COLUMNS
    text = " ".join("\n".join(screen).split())
    models = re.findall(r"(\S+) on \S+, n = 797 of 1,797:", text)
    assert len(models) == 2
    for words in ("configurations hold 1 pt", "fastest: ", "smallest: "):
        assert text.count(words) == len(models)


def test_the_first_screen_of_the_readme_is_that_of_the_whole_demo_word_for_word(screen):
    whole = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    assert "\n".join(screen) in whole


def test_the_readmes_pandas_example_gives_what_the_report_prints(tmp_path, monkeypatch, capsys):
    baseline, cell = make_cell(None), make_cell("static", "w8a8")
    with RunFolder.open(
        tmp_path / "runs" / "demo", sweep="demo", spec_text="", spec_digest="spec"
    ) as run:
        run.commit_cells(
            [
                finish(baseline, quality(baseline), latency(baseline, ratio=1.0)),
                finish(cell, quality(cell, worse=9, better=1), latency(cell)),
            ]
        )
    monkeypatch.chdir(tmp_path)
    from rich.console import Console

    show_report("runs/demo", Console(width=100), lambda text: None, Wish())
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if "static w8a8 " in line]
    (example,) = blocks(README, "python")
    scope = {}
    exec(compile(example, "README.md", "exec"), scope)
    (change,) = scope["changes"].to_numpy().ravel()
    assert change == pytest.approx(100 * (1 - 9) / 360)
    assert f" {change:.1f} " in printed
    assert isinstance(scope["cells"], pd.DataFrame)
