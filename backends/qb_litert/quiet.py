"""Silence for third parties that write to the terminal."""

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_LAST_CHARACTERS = 4000
# File descriptors belong to the whole process: two threads must not swap them at once.
_LOCK = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, stdout and stderr of a block off the terminal.

    Descriptors are swapped, because the converter and the interpreter write from C++. What
    stands in for ``sys.stdout`` meanwhile lives as long as the process: log handlers that an
    import inside the block makes keep it. If the block raises, the end of what was written
    goes with the exception as a note.
    """
    with (
        _LOCK,
        warnings.catch_warnings(),
        tempfile.TemporaryFile() as sink,
        redirect_stdout(sys.__stdout__),
        redirect_stderr(sys.__stderr__),
    ):
        warnings.simplefilter("ignore")
        _flush()
        kept = [(fd, os.dup(fd)) for fd in (1, 2)]
        for fd, _ in kept:
            os.dup2(sink.fileno(), fd)
        try:
            yield
        except Exception as error:
            _flush()
            sink.seek(0)
            if written := sink.read().decode(errors="replace").strip():
                error.add_note(f"It wrote:\n{written[-_LAST_CHARACTERS:]}")
            raise
        finally:
            _flush()
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
