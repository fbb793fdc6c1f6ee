"""Documents that repeat what the code says must go on saying the same."""

from pathlib import Path

from qb_cluster.contracts import STATUSES
from qb_cluster.store.tables import columns_markdown

ROOT = Path(__file__).parents[1]


def test_the_results_page_lists_every_column():
    assert columns_markdown().strip() in (ROOT / "docs" / "results.md").read_text()


def test_the_results_page_names_every_status():
    page = (ROOT / "docs" / "results.md").read_text()
    assert all(f"`{status}`" in page for status in STATUSES)
