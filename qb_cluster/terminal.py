"""The two streams of `qb`: data on stdout, everything said to people on stderr."""

import codecs
import io
import os
import sys
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console

_ALIKE: Final = "qb_cluster.alike"
_PLAIN: Final = {
    "×": "x",
    "µ": "u",
    "Δ": "D",
    "★": "*",
    "†": "+",
    "·": "-",
    "–": "-",
    "─": "-",
    "÷": "/",
    "…": "..",
    "±": "+-",
}


def prepare_streams() -> None:
    """Let nothing that is printed be an error of the stream it is printed to.

    A character that the stream's encoding lacks becomes one that reads alike, else ``?``, and a
    closed stream swallows all.
    """
    codecs.register_error(_ALIKE, _read_alike)
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ALIKE)


def _read_alike(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded; an error handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lacking), error.end


def output() -> Console:
    """Give the console for what was asked for: stdout."""
    return _Output()


def messages() -> Console:
    """Give the console for progress, notes and warnings: stderr."""
    return _Messages(stderr=True)


class _Output(Console):
    """A reader that has seen enough ends the command; rich's own exits with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Messages(Console):
    """A run goes on when nobody listens any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        forget(sys.stderr)


def forget(stream: TextIO) -> None:
    """Send what a broken stream still holds nowhere: flushing it would fail once more."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), stream.fileno())


def _nowhere() -> io.TextIOWrapper:
    return Path(os.devnull).open("w", encoding="utf-8")
