"""The cause of an error of another library, in one line: what a row of the results can hold."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qb_cluster.errors import CellError, UnsupportedError

LONGEST: Final = 280
"""Characters: a message around it still fits a row of the results."""
_COLOURS: Final = re.compile(r"\x1b\[[\d;]*m")


def cause(error: BaseException, noise: re.Pattern[str] | None = None) -> str:
    """Give the kind and message of what raised an error at first, in one line.

    Lines are joined up to the first empty one (advice follows there); what is still long is cut
    in the middle.

    Args:
        error: what came; the error at the root of its causes is told.
        noise: what that library's messages hold beside the cause.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    said = _COLOURS.sub("", str(error))
    said = said if noise is None else noise.sub("", said)
    text = shortened(" ".join(said.strip().partition("\n\n")[0].split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shortened(text: str) -> str:
    """Cut a text in the middle where it is longer than ``LONGEST``."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


@contextmanager
def refusals(what: str, advice: str, noise: re.Pattern[str] | None = None) -> Iterator[None]:
    """Make ``unsupported`` of whatever another library raises on a model of the user's.

    Only calls of that library belong in here: our own mistakes are to be seen.

    Args:
        what: begins the message, before the cause.
        advice: ends it: what to do next.
        noise: see ``cause``.

    Raises:
        UnsupportedError: it raised something.
        CellError: that was raised in here, as it is.
    """
    try:
        yield
    except CellError:
        raise
    except Exception as error:
        raise UnsupportedError(f"{what} ({cause(error, noise)}); {advice}") from error
