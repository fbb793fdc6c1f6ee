"""What `qb` exits with. ``docs/exit-codes.md`` says which command ends in which, and why."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    UNEXPECTED = 1  # Python's own, with a traceback: a bug, not a user's mistake
    CANNOT_RUN = 2  # click's own for wrong usage
    SOME_FAILED = 3
    INTERRUPTED = 130  # what shells say of a process that Ctrl-C ended
