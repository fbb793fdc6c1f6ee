"""The agent's own folder on a board, which is gone when the agent is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "quantbench-"
"""Of its name, which it has only once ``ALIVE`` is there and locked."""
AGENT = "agent.pyz"
"""The agent in its folder, which its command line names."""
ALIVE = "alive"
"""A file in the folder that its agent holds locked as long as it lives."""


class PrivateFolder:
    """The folder that the bootstrap made.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def remove(self) -> None:
        """Remove the folder with all that is in it, as far as the system lets us."""
        for _ in range(3):  # another thread may just be writing an artifact
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return

    def remove_dead_neighbours(self) -> list[str]:
        """Remove the folders that agents left which could not do it; give their names."""
        removed = []
        for folder in self.path.parent.glob(PREFIX + "*"):
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                if folder != self.path and folder.is_dir() and _is_dead(folder):
                    shutil.rmtree(folder)
                    removed.append(folder.name)
        return removed


def _is_dead(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / ALIVE, os.O_RDONLY)
    except FileNotFoundError:  # half removed: it was there before the folder had its name
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
