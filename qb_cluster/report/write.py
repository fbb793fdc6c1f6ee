"""The files of a report, beside the results."""

from collections.abc import Callable
from contextlib import suppress

from qb_cluster.errors import RunFolderError
from qb_cluster.installation import install_line
from qb_cluster.report import answer_table, bits_plot
from qb_cluster.report.analysis import Analysis
from qb_cluster.report.answer import answer
from qb_cluster.report.document import Document
from qb_cluster.report.records import with_lists_as_text
from qb_cluster.report.render import to_markdown
from qb_cluster.storage import Folder

_PICTURE = "bits.svg"


def write_files(found: Analysis, document: Document, notice: Callable[[str], None]) -> list[str]:
    """Write a report into the folder ``report`` of its run.

    Args:
        found: the analysis of the run.
        document: what it says.
        notice: told what could not be made, and how it can.

    Returns:
        Where each file was written: ``comparison.parquet``, ``comparison.csv`` and
        ``comparison.md``; where there are several devices ``devices.parquet`` and
        ``devices.csv``; where backends or devices can be compared with each other
        ``agreement.parquet``; and where there are three bit-widths of a scheme, and matplotlib,
        ``bits.svg``.

    Raises:
        RunFolderError: it cannot be written.
    """
    folder = found.run.folder.folder("report")
    picture = _picture(found, folder, notice)
    figures = {_PICTURE: bits_plot.SHOWS} if picture else {}
    comparison = found.comparison
    first = answer_table.to_markdown(answer(found, comparison))
    contents = {
        "comparison.parquet": comparison.to_parquet(index=False),
        "comparison.csv": with_lists_as_text(comparison).to_csv(index=False).encode(),
        "comparison.md": to_markdown(document, figures, first).encode(),
    }
    if len(found.devices):
        contents["devices.parquet"] = found.devices.to_parquet(index=False)
        contents["devices.csv"] = with_lists_as_text(found.devices).to_csv(index=False).encode()
    if len(found.agreement):
        contents["agreement.parquet"] = found.agreement.to_parquet(index=False)
    if picture:
        contents[_PICTURE] = picture
    try:
        for name, content in contents.items():
            folder.replace(name, content)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written: {error.strerror or error}; the results are intact"
        ) from error
    return [f"{folder}/{name}" for name in contents]


def _picture(found: Analysis, folder: Folder, notice: Callable[[str], None]) -> bytes | None:
    """Draw quality against bits, if there is enough to draw and something to draw with.

    Drawing takes as long as all the rest, so a picture that shows this already is kept.
    """
    if not found.bits:
        return None
    with suppress(OSError):
        kept = folder.read(_PICTURE)
        if bits_plot.drawing_of(found.bits).encode() in kept:
            return kept
    try:
        return bits_plot.draw(found.bits)
    except ImportError:
        notice(f"no {_PICTURE}: matplotlib is not installed; {install_line('plots')}")
        return None
