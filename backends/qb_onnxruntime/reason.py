"""The cause of an error of another library, in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from qb_cluster.errors import UnsupportedError

LONGEST = 280
"""Characters: a message around it still fits a row of the results."""

_NOISE = re.compile(
    r"\x1b\[\d*m"  # colours
    r"|\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "  # the kind of error once more
    r"|/onnxruntime_src/\S+ .*?\) (?=[A-Z])"  # a C++ function with its arguments
)


def reason(error: BaseException) -> str:
    """Give the kind and message of what raised an error at first, in one line.

    Lines are joined up to the first empty one (advice follows there); what is still long is cut
    in the middle.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    said = _NOISE.sub("", str(error)).strip().partition("\n\n")[0]
    text = " ".join(said.split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Make ``unsupported`` of whatever another library raises on a graph of the user's.

    Only calls of that library belong in here: our own mistakes are to be seen.

    Args:
        what: begins the message, before the reason.

    Raises:
        UnsupportedError: it raised something.
    """
    try:
        yield
    except Exception as error:
        raise UnsupportedError(
            f"{what} ({reason(error)}); use another scheme, or leave onnxruntime out of the "
            "backends of this model"
        ) from error
