"""A driver that is killed. Run as a script, in a process of its own.

``steps FOLDER``: for k = 0, 1, …, a fresh process runs the whole sweep into ``FOLDER/k`` and
kills itself just before its k-th writing operation on a file there; until one gets to the end.
What it was told to be on disk it writes to ``FOLDER/done-k``.

``again FOLDER``: the same with cells that have been run and run again, and with parts merged; but
for the operations that make files to be renamed, which differ in what is left aside alone.

``loop FOLDER``: commits cells into FOLDER for ever and says each id once it is on disk.
"""

import importlib
import os
import shutil
import signal
import sys
from itertools import count
from pathlib import Path

from stored_cells import BEGIN, failed, finish, latency, layer, make_cell, quality

from qb_cluster.store import merging, run_folder
from qb_cluster.store.journal import JournalEntry
from qb_cluster.store.run_folder import RunFolder

N = 5
CELLS = [make_cell(None), *(make_cell("static", bits) for bits in ("w8a8", "w4a8", "w3a8"))]
OPERATIONS = {"os.rename", "os.remove", "shutil.rmtree"}
AGAIN = BEGIN.replace(year=BEGIN.year + 1)


def open_folder(path):
    return RunFolder.open(path, sweep="digits", spec_text="sweep: digits", spec_digest="spec")


def run_sweep(run, on_disk=lambda cell_ids: None):
    """Do what is not done yet: journal two cells, then finish them, then the other two."""
    journal = run.stage_outcomes()
    fresh = [JournalEntry(_quality(cell), 1) for cell in CELLS[:2] if cell.cell_id not in journal]
    run.commit_stages(fresh)
    journal |= {entry.outcome.cell_id: entry for entry in fresh}
    for group in (CELLS[:2], CELLS[2:]):
        finished = [
            _finished(cell, journal[cell.cell_id].outcome if cell.cell_id in journal else None)
            for cell in group
            if cell.cell_id not in run.finished()
        ]
        run.commit_cells(finished)
        on_disk([ended.cell.cell_id for ended in finished])


def run_again(run):
    """Journal the first cell anew, then give three of them new rows: one has nothing to show."""
    outcome = _quality(CELLS[0], AGAIN)
    run.commit_stages([JournalEntry(outcome, 2)])
    run.commit_cells(
        [
            finish(CELLS[0], outcome, latency(CELLS[0]), attempt=2),
            finish(CELLS[1], failed(CELLS[1], "crashed", "it died", started_at=AGAIN), attempt=2),
            finish(CELLS[2], _quality(CELLS[2], AGAIN), latency(CELLS[2]), attempt=2),
        ]
    )


def merge_eagerly(monkeypatch=None):
    """Let two small parts be too many."""
    for module, name, value in (
        (merging, "_TIERS", (3, 90)),
        (run_folder, "MANY", 2),
        (run_folder, "MANY_AT_THE_END", 2),
    ):
        (monkeypatch.setattr if monkeypatch else setattr)(module, name, value)


def _quality(cell, started_at=BEGIN):
    layers = [layer("conv1"), layer("conv1", "all_but")]
    right, worse = (5, 1) if started_at == BEGIN else (2, 0)
    return quality(
        cell, n=N, right=right, worse=worse, better=0, layers=layers, started_at=started_at
    )


def _finished(cell, journaled=None):
    outcomes = (journaled or _quality(cell), latency(cell))
    return finish(cell, *outcomes)


def _die_before(step, folder, *, is_making_counted=True):
    steps = count()

    def hook(event, arguments):
        # An audit hook is called before the operation, so no production code knows of it.
        is_making = event == "os.mkdir" or (event == "open" and arguments[2] & os.O_CREAT)
        is_counted = event in OPERATIONS or (is_making and is_making_counted)
        if is_counted and str(arguments[0]).startswith(f"{folder}/") and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _run_and_die(folder, step):
    with (folder / f"done-{step}").open("w") as done:
        _die_before(step, folder / str(step))
        with open_folder(folder / str(step)) as run:
            run_sweep(run, lambda ids: (done.writelines(f"{i}\n" for i in ids), done.flush()))


def _run_again_and_die(folder, step):
    shutil.copytree(folder / "first", folder / str(step))
    _die_before(step, folder / str(step), is_making_counted=False)
    with open_folder(folder / str(step)) as run:
        run_again(run)


def _each_step(folder, run_and_die):
    importlib.import_module("pandas")  # pyarrow needs it; once here, not once in each child
    for step in count():
        child = os.fork()
        if not child:
            run_and_die(folder, step)
            os._exit(0)
        how = os.waitpid(child, 0)[1]
        if how != signal.SIGKILL:
            sys.exit(how)


def _steps(folder):
    _each_step(folder, _run_and_die)


def _again(folder):
    with open_folder(folder / "first") as run:
        run_sweep(run)
    merge_eagerly()
    _each_step(folder, _run_again_and_die)


def _loop(folder):
    with open_folder(folder) as run:
        for number in count(len(run.finished())):
            cell = make_cell("static", "w8a8", seed=number)
            run.commit_cells([_finished(cell)])
            sys.stdout.write(f"{cell.cell_id}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    {"steps": _steps, "again": _again, "loop": _loop}[sys.argv[1]](Path(sys.argv[2]))
