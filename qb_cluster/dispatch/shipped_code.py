"""A zip of the driver's code, for nodes that have other code of ours or none.

Its content and nothing else decides its bytes, so that Ray keeps and sends the same code once.
Does not import Ray.
"""

import heapq
import os
import stat
from collections.abc import Iterator
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from qb_cluster.errors import PoolError
from qb_cluster.store.manifest import MANIFEST

_DISTRIBUTION: Final = "qb-cluster"
_SHARED: Final = "qb_litert"  # no entry point names it
_METADATA: Final = ("METADATA", "entry_points.txt")  # what finding plug-ins by name takes
_NEVER: Final = frozenset({"__pycache__", "runs"})
_RAY_SETTING: Final = "RAY_max_grpc_message_size"
_RAY_MOST_BYTES: Final = 512 * 1024 * 1024
_LARGEST_NAMED: Final = 3
_MODE: Final = 0o644


def pack_code(zip_file: Path, folder: Path, leave_out: Path | None = None) -> None:
    """Write our packages and the files of a folder, where plug-ins are, into a zip.

    Of the folder, what is hidden stays here, and so do ``__pycache__``, ``runs`` and other run
    folders, environments of Python, and links to folders. Where both have a name, ours wins.

    Args:
        zip_file: where to write it.
        folder: the user's.
        leave_out: a folder in it that stays here too.

    Raises:
        PoolError: it is larger than what Ray sends, or a file of it cannot be read.
    """
    files = _our_files()
    ours = {name.partition("/")[0] for name in files}
    try:
        for file in _files(folder, leave_out):
            name = file.relative_to(folder).as_posix()
            if name.partition("/")[0] not in ours:
                files[name] = file
        _check_size(folder, files)
        with ZipFile(zip_file, "w", ZIP_DEFLATED, compresslevel=1) as packed:
            for name, file in sorted(files.items()):
                _add(packed, name, file.read_bytes())
            for name, text in _our_metadata():
                _add(packed, name, text.encode())
    except OSError as error:
        raise PoolError(
            f"--ship-code cannot send the code in {folder}: {error}; make the file readable, move "
            "it away, or run without --ship-code"
        ) from error


def most_bytes() -> int:
    """Give the most bytes that Ray sends as one; it takes its setting from the same place."""
    return int(os.environ.get(_RAY_SETTING, _RAY_MOST_BYTES))


def _our_files() -> dict[str, Path]:
    """Give the files of our packages by their name in the zip."""
    points = distribution(_DISTRIBUTION).entry_points
    files = {}
    for package in sorted({_SHARED, *(point.module.partition(".")[0] for point in points)}):
        found = find_spec(package)
        for place in found.submodule_search_locations or () if found else ():
            for file in _files(Path(place), None):
                files[f"{package}/{file.relative_to(place).as_posix()}"] = file
    return files


def _our_metadata() -> Iterator[tuple[str, str]]:
    found = distribution(_DISTRIBUTION)
    for name in _METADATA:
        if (text := found.read_text(name)) is not None:
            yield f"{_DISTRIBUTION.replace('-', '_')}-{found.version}.dist-info/{name}", text


def _files(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if _is_sent(here / name, leave_out)]
        for name in names:
            # A link to a file is sent as the file; a broken one, a socket or a pipe not at all.
            if not name.startswith(".") and (here / name).is_file():
                yield here / name


def _is_sent(folder: Path, leave_out: Path | None) -> bool:
    return not (
        folder.name.startswith(".")
        or folder.name in _NEVER
        or folder.is_symlink()
        or (leave_out is not None and folder.resolve() == leave_out.resolve())
        or (folder / "pyvenv.cfg").exists()
        or ((folder / MANIFEST).exists() and (folder / "results").is_dir())
    )


def _check_size(folder: Path, files: dict[str, Path]) -> None:
    sizes = {name: file.stat().st_size for name, file in files.items()}
    total = sum(sizes.values())
    if total < most_bytes():
        return
    largest = heapq.nlargest(_LARGEST_NAMED, sizes, key=lambda name: sizes[name])
    listed = ", ".join(f"{name} ({_mb(sizes[name])})" for name in largest)
    raise PoolError(
        f"--ship-code would send {_mb(total)} from {folder}, and Ray sends less than "
        f"{_mb(most_bytes())}; the largest are {listed}: keep data outside the folder where qb "
        "runs, or in a folder with a dot before its name"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _add(packed: ZipFile, name: str, content: bytes) -> None:
    entry = ZipInfo(name)  # of 1980, whenever the file was changed
    entry.external_attr = (stat.S_IFREG | _MODE) << 16
    entry.compress_type = ZIP_DEFLATED
    packed.writestr(entry, content, compresslevel=1)
