"""``qb report``: from a run folder to the terminal and to files beside the results."""

from pathlib import Path

from rich.console import Console

from qb_cluster.errors import RunFolderError
from qb_cluster.report import bits_plot
from qb_cluster.report.analysis import Analysis, analyse
from qb_cluster.report.document import build
from qb_cluster.report.render import to_markdown, to_terminal
from qb_cluster.store.reading import read_run

_PICTURE = "bits.svg"


def write_report(run_dir: str | Path, console: Console) -> list[str]:
    """Print the comparison of a run, finished or not, and write it into ``run_dir/report``.

    Args:
        run_dir: the run folder: a path, or the URL of an object store.
        console: where to print.

    Returns:
        Where each file was written: ``comparison.parquet``, ``comparison.csv`` and
        ``comparison.md``; where there are several devices ``devices.parquet`` and
        ``devices.csv``; where backends or devices can be compared with each other
        ``agreement.parquet``; and where there are three bit-widths of a scheme, and matplotlib,
        ``bits.svg``.

    Raises:
        RunFolderError: it is no run folder, has no results yet, or cannot be written.
    """
    run = read_run(run_dir)
    if run.results.empty:
        found = "\n".join(("no cell has finished yet", *run.problems))
        raise RunFolderError(f"{run_dir}: {found}; run `qb run` first")
    analysis = analyse(run)
    document = build(analysis)
    to_terminal(document, console)
    picture = _picture(analysis, console)
    figures = {_PICTURE: bits_plot.SHOWS} if picture else {}
    comparison = analysis.comparison
    contents = {
        "comparison.parquet": comparison.to_parquet(index=False),
        "comparison.csv": comparison.to_csv(index=False).encode(),
        "comparison.md": to_markdown(document, figures).encode(),
    }
    if len(analysis.devices):
        contents["devices.parquet"] = analysis.devices.to_parquet(index=False)
        contents["devices.csv"] = analysis.devices.to_csv(index=False).encode()
    if len(analysis.agreement):
        contents["agreement.parquet"] = analysis.agreement.to_parquet(index=False)
    if picture:
        contents[_PICTURE] = picture
    folder = run.folder.folder("report")
    try:
        for name, content in contents.items():
            folder.replace(name, content)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written: {error.strerror or error}; the results are intact"
        ) from error
    return [f"{folder}/{name}" for name in contents]


def _picture(analysis: Analysis, console: Console) -> bytes | None:
    """Draw quality against bits, if there is enough to draw and something to draw with."""
    if not analysis.bits:
        return None
    try:
        return bits_plot.draw(analysis.bits)
    except ImportError:
        console.print(
            f"no {_PICTURE}: matplotlib is not installed; pip install 'qb-cluster[plots]'",
            style="yellow",
            highlight=False,
            markup=False,
        )
        return None
