"""The token that a Ray cluster asks for: where it is here, and who else may read it.

Whoever has it may run any code on every node of the cluster. Does not import Ray.
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from qb_cluster.errors import PoolError

TOKEN: Final = "RAY_AUTH_TOKEN"  # noqa: S105
TOKEN_PATH: Final = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
_PRIVATE: Final = 0o600
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def token_file() -> Path | None:
    """Give the file that Ray takes the token from; ``None`` where it is in a variable.

    The file need not be there, unless its path comes from a variable.

    Raises:
        PoolError: a variable names a file that cannot be read or is empty.
    """
    if os.environ.get(TOKEN):
        return None
    if named := os.environ.get(TOKEN_PATH):
        file = Path(named)
        try:
            is_empty = not file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise PoolError(f"{TOKEN_PATH} names a file that cannot be read: {error}") from error
        if is_empty:
            raise PoolError(f"{TOKEN_PATH} names an empty file, {file}; a token is one line of it")
        return file
    return Path.home() / ".ray" / "auth_token"


def make_private(file: Path) -> str | None:
    """Keep a token's file from all but its owner; gives a warning if others could read it."""
    try:
        if not file.stat().st_mode & _OTHERS:
            return None
    except OSError:
        return None  # there is none, or Ray will say what is the matter with it
    try:
        file.chmod(_PRIVATE)
    except OSError as error:
        return (
            f"others on this machine may read the Ray token in {file}, and run code on its "
            f"cluster, and that cannot be changed from here ({error.strerror}); have its owner "
            "run chmod 600"
        )
    return f"others on this machine could read the Ray token in {file}; it has mode 0600 now"


def ensure_token(file: Path) -> None:
    """Write a new token that its owner alone can read, unless there is one.

    Ray would write it itself, for everybody to read.

    Raises:
        PoolError: it cannot be written.
    """
    try:
        if file.exists():
            if file.stat().st_size:
                return
            file.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.") as new:  # mode 0600
            new.write(secrets.token_hex(32))
            new.flush()
            with suppress(FileExistsError):  # somebody else was first: theirs is in use
                os.link(new.name, file)
    except OSError as error:
        raise PoolError(
            f"the token of a Ray on this machine cannot be written ({error}); name another file "
            f"in {TOKEN_PATH}, or switch tokens off with RAY_AUTH_MODE=disabled"
        ) from error
