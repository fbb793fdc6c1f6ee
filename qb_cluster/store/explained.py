"""Errors of the storage, in the words of whoever runs a sweep."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from qb_cluster.errors import RunFolderError


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Turn an error of the storage into one for the user.

    Args:
        what: what cannot be done, and where.
        advice: what to do about it.

    Raises:
        RunFolderError: the block raised one.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunFolderError(f"{what}: {reason}; {advice}") from error
