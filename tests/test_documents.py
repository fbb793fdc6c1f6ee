"""Documents that repeat what the code says must go on saying the same."""

import re
from pathlib import Path

import pytest

from qb_cluster import cli
from qb_cluster.contracts import STATUSES, coverage
from qb_cluster.evaluation import kernel
from qb_cluster.report import bits, comparison
from qb_cluster.store.tables import RESULTS, TABLES, columns_markdown

ROOT = Path(__file__).parents[1]


def page(name):
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("table", ["results", "layers", "predictions", "samples"])
def test_the_results_page_lists_every_column(table):
    assert f"## The table `{table}`\n\n{columns_markdown(table)}\n" in page("results.md")


def test_the_results_page_names_every_table():
    assert all(f"| `{table}/` |" in page("results.md") for table in TABLES)


def test_the_results_page_names_every_status():
    assert all(f"`{status}`" in page("results.md") for status in STATUSES)


def test_the_measurement_page_states_the_limits_that_the_code_applies():
    text = " ".join(page("measurement.md").split())
    assert f"more than {kernel.MARGIN_DB:g} dB below" in text
    assert f"more than {100 * kernel.MARGIN_AGREEMENT:g} percentage points below" in text
    assert f"more than {bits.MOST_RESIDUAL_DB:g} dB off the line" in text
    assert f"at least {bits.FEWEST_FITTED} neighbouring widths" in text


def test_the_report_page_names_every_column_that_results_do_not_have():
    own = set(comparison.COLUMNS) - {column.name for column in RESULTS}
    assert own
    assert [name for name in sorted(own) if f"`{name}`" not in page("report.md")] == []


def test_the_report_page_states_the_limit_of_partial_cells():
    assert f"less than {coverage.WHOLE:g} of the weights" in page("report.md")


def test_the_report_page_names_every_option_of_the_command():
    options = {name for option in cli.report.params for name in option.opts if "--" in name}
    assert len(options) > 6
    assert [name for name in sorted(options) if f"`{name}" not in page("report.md")] == []


def test_the_reliability_page_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", page("reliability.md")))
    assert len(named) > 20
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named <= written, named - written
