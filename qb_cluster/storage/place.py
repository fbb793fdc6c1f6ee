"""From what a user writes to a folder."""

from pathlib import Path
from typing import Final

from qb_cluster.errors import RunFolderError
from qb_cluster.storage.folder import Folder
from qb_cluster.storage.local_folder import LocalFolder

_OBJECT_STORES: Final = ("s3", "gs", "gcs")


def open_folder(place: str | Path) -> Folder:
    """Make a folder of a path, or of the URL of an object store; touches neither.

    Args:
        place: a path, ``file:///…``, ``s3://bucket/prefix?endpoint_override=…`` or
            ``gs://bucket/prefix``, with the options and credentials that ``pyarrow.fs`` knows.

    Raises:
        RunFolderError: the URL is not understood.
    """
    scheme, is_url, rest = str(place).partition("://")
    if isinstance(place, Path) or not is_url:
        return LocalFolder(Path(place))
    if scheme == "file":
        return LocalFolder(Path(rest))
    if scheme not in _OBJECT_STORES:
        raise RunFolderError(
            f"{place}: there is no storage '{scheme}'; give a path, s3://BUCKET/PREFIX or "
            "gs://BUCKET/PREFIX"
        )
    from qb_cluster.storage.object_folder import ObjectFolder

    return ObjectFolder(str(place))
