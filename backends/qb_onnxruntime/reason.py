"""The cause of an error of onnxruntime, in one line."""

import re
from contextlib import AbstractContextManager
from typing import Final

from qb_cluster import causes

_NOISE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "  # the kind of error once more
    r"|/onnxruntime_src/\S+ .*?\) (?=[A-Z])"  # a C++ function with its arguments
)
_ADVICE: Final = "use another scheme, or leave onnxruntime out of the backends of this model"


def reason(error: BaseException) -> str:
    """Give the kind and message of what raised an error at first, in one line."""
    return causes.cause(error, _NOISE)


def refusals(what: str) -> AbstractContextManager[None]:
    """Make ``unsupported`` of whatever onnxruntime raises on a graph; see ``causes.refusals``."""
    return causes.refusals(what, _ADVICE, _NOISE)
