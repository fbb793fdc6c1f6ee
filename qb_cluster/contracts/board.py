"""Where a board is, and how to reach it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SshBoard:
    """A machine too small for Ray, reached over SSH.

    What is empty or 0 is left to ``~/.ssh/config``, then to SSH's own defaults.

    Attributes:
        host: name or address, or an alias of ``~/.ssh/config``.
        user: who to log in as.
        port: TCP port.
        python: the Python to run there: a name on its PATH, or a path.
        folder: where the agent may write there; empty for the system's temporary folder.
        known_hosts: file with the keys of known hosts. They are always checked.
        key: file with the private key; otherwise those of the agent and the usual files.
    """

    host: str
    user: str = ""
    port: int = 0
    python: str = "python3"
    folder: str = ""
    known_hosts: str = ""
    key: str = ""
