"""``run.json``: what makes a folder a run folder, and whose it is."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from qb_cluster.errors import RunFolderError
from qb_cluster.storage import Folder
from qb_cluster.store.tables import SCHEMA_VERSION

MANIFEST: Final = "run.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run folder says about itself.

    Attributes:
        schema_version: version of its layout.
        sweep: name of the sweep it belongs to; other sweeps are refused.
        spec_digest: digest of the spec that was run into it last.
        planned_cells: how many cells that spec has; ``None`` where nobody counted.
        judgement: how that spec wants results judged, as JSON; ``None`` in older folders.
        unplanned: cells that have a row and that the spec does not have, since an earlier one
            had them; ``None`` where nobody has looked.
    """

    schema_version: int
    sweep: str
    spec_digest: str
    planned_cells: int | None
    judgement: dict[str, Any] | None = None
    unplanned: list[str] | None = None


def read_manifest(run: Folder) -> Manifest | None:
    """Read a folder's manifest; ``None`` where there is none.

    Raises:
        RunFolderError: it is damaged, or a newer QuantBench wrote it.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(run.read(MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunFolderError(_damaged(run, str(error))) from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if not isinstance(version, int):
        raise RunFolderError(_damaged(run, "no schema_version"))
    if version > SCHEMA_VERSION:
        raise RunFolderError(
            f"{run} has layout {version}, this QuantBench knows layouts up to {SCHEMA_VERSION}; "
            "upgrade QuantBench, or choose another --out"
        )
    try:
        return Manifest(**found)
    except TypeError as error:
        raise RunFolderError(_damaged(run, str(error))) from error


def write_manifest(run: Folder, manifest: Manifest) -> None:
    """Write a folder's manifest.

    Raises:
        OSError: it cannot be written.
    """
    content = json.dumps(asdict(manifest), indent=2).encode() + b"\n"
    run.replace(MANIFEST, content)


def refuse_foreign(folder: Folder, sweep: str) -> None:
    """Refuse a folder that is not for a sweep to add to; one that is not there yet is.

    Raises:
        RunFolderError: it is a file, or a folder that holds something else.
        OSError: it cannot be read.
    """
    try:
        names = folder.names()
    except NotADirectoryError as error:
        raise RunFolderError(f"{folder} is a file, or in one; choose another --out") from error
    manifest = read_manifest(folder)
    if manifest is None:
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise RunFolderError(
                f"{folder} is no run folder and not empty ({shown}); choose another --out"
            )
    elif manifest.schema_version < SCHEMA_VERSION:
        raise RunFolderError(
            f"{folder} has the older layout {manifest.schema_version}, which can be reported on "
            "but not added to; choose another --out"
        )
    elif manifest.sweep != sweep:
        raise RunFolderError(
            f"{folder} belongs to the sweep '{manifest.sweep}', not '{sweep}'; choose another "
            f"--out, or give the spec its name back"
        )


def _damaged(run: Folder, why: str) -> str:
    return f"{run}/{MANIFEST} is damaged ({why}); restore it, or choose another --out"
