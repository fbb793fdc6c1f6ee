import io

import pytest
from rich.console import Console
from stored_cells import failed, finish, latency, make_cell, never_run, quality

from qb_cluster.contracts import STATUSES
from qb_cluster.report import Wish, show_report
from qb_cluster.store.run_folder import RunFolder


@pytest.fixture
def store(tmp_path):
    """A function that writes cells with their outcomes into a run folder, and gives it."""

    def write(*finished, planned_cells=None, judgement=None):
        path = tmp_path / "run"
        with RunFolder.open(
            path,
            sweep="digits",
            spec_text="sweep: digits",
            spec_digest="spec",
            planned_cells=planned_cells,
            judgement=judgement,
        ) as run:
            run.commit_cells(
                [
                    finish(cell, *outcomes)
                    if outcomes
                    else never_run(cell, "unsupported", cell.reason)
                    for cell, *outcomes in finished
                ]
            )
        return path

    return write


@pytest.fixture
def show():
    """A function that reports on a run folder and gives what a terminal shows."""

    def render(path, width=80, told=None, **wish):
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        told = [] if told is None else told
        show_report(path, console, told.append, Wish(**{"full": True} | wish))
        return console.file.getvalue()

    return render


@pytest.fixture
def every_status():
    """A baseline, an ok cell and one cell of each other status, with their outcomes."""
    baseline, ok = make_cell(None), make_cell("static", "w8a8")
    bad = [
        (make_cell("static", f"w{number}a16"), status)
        for number, status in enumerate(STATUSES[2:], start=8)
    ]
    part = make_cell("static", "w7a8")
    return [
        (part, quality(part, covered_share=0.5)),
        (baseline, quality(baseline), latency(baseline, ratio=1.0, speedup_verdict="equivalent")),
        (ok, quality(ok, worse=9, better=1), latency(ok)),
        *((cell, failed(cell, status, f"it {status}")) for cell, status in bad),
    ]
