"""What a node says about itself to Ray: labels (what it is) and resources (how many at once).

Pure. Labels keep to the syntax of Ray, which is that of Kubernetes.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qb_cluster.nodes.accelerators import Accelerator

LOCK: Final = "qb_lock"
"""The resource that a sweep holds while it uses a node: two would be noise to each other."""
RUNTIMES: Final = (
    "ai-edge-litert", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tflite-runtime", "torch",
)  # fmt: skip
OURS: Final = "qb/"
KEYS: Final = tuple(
    OURS + name
    for name in ("accelerator", "arch", "board", "cpu", "host", "python", "version", *RUNTIMES)
)
"""What a node says of itself; other keys of ours would be slips of the pen."""
LONGEST_VALUE: Final = 63
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_PREFIX: Final = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_KEY: Final = re.compile(rf"({_PREFIX}(\.{_PREFIX})*/)?{_LABEL}")
_VALUE: Final = re.compile(_LABEL)
_LONGEST_PREFIX: Final = 253
_CPU_WORDS: Final = {
    "avx2": "avx2", "avx512f": "avx512", "avx512_vnni": "vnni", "avx_vnni": "vnni",
    "amx_int8": "amx", "asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "sve": "sve",
}  # fmt: skip


def node_labels(
    machine: Mapping[str, Any],
    gpus: Sequence[Accelerator],
    runtimes: Mapping[str, str],
    own: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Give the labels of a node, in the order of their keys; what is unknown has none.

    Args:
        machine: as ``environment.describe`` tells.
        gpus: that work may use. Unlike ones are all named, joined by ``_``.
        runtimes: version by distribution, of those that are installed.
        own: labels that the user gives, which win.
    """
    cpu = dict.fromkeys(_CPU_WORDS[name] for name in machine["cpu_features"])
    found = {
        "qb/board": machine["board"],
        "qb/arch": machine["arch"],
        "qb/accelerator": "_".join(dict.fromkeys(slug(gpu.name) for gpu in gpus)) or "none",
        "qb/host": machine["host"],
        "qb/python": machine["python"],
        "qb/version": machine["libraries"]["qb-cluster"],
        "qb/cpu": "-".join(cpu),
        **{f"qb/{name}": version for name, version in runtimes.items()},
    }
    slugs = {key: value for key, text in found.items() if (value := slug(text or ""))}
    return dict(sorted((slugs | dict(own or {})).items()))


def slug(text: str) -> str:
    """Make a label's value of any text: small letters, ``-`` for what Ray does not take.

    Empty where nothing of the text is left.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9._]+", "-", plain).strip("._-")[:LONGEST_VALUE].strip("._-")


def is_key(key: str) -> bool:
    """Tell whether Ray takes this as a label's key."""
    return _KEY.fullmatch(key) is not None and len(key.rpartition("/")[0]) <= _LONGEST_PREFIX


def is_value(value: str) -> bool:
    """Tell whether Ray takes this as a label's value."""
    return _VALUE.fullmatch(value) is not None
