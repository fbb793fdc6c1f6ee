"""The file in which a node's owner says what cannot be found out.

::

    [labels]
    place = "rack-3"                       # a label more; wins over one that was found

    [environments]
    tflite = "/opt/tflite/bin/python"      # the interpreter that this backend runs in
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from qb_cluster.errors import QuantBenchError
from qb_cluster.nodes.labels import KEYS, OURS, is_key, is_value

VARIABLE: Final = "QB_NODE_CONFIG"
DEFAULT: Final = "~/.config/quantbench/node.toml"
_TABLES: Final = ("labels", "environments")


class NodeConfigError(QuantBenchError):
    """A node's own file is wrong. The message names the file and the key."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What the owner of a node says about it.

    Attributes:
        path: of the file; it need not exist.
        labels: that the node has besides those that are found out.
        environments: by backend, the interpreter that it runs in.
    """

    path: Path
    labels: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, Path] = field(default_factory=dict)


def load_node_config(path: Path | None = None) -> NodeConfig:
    """Read a node's file.

    Args:
        path: of the file; else ``$QB_NODE_CONFIG``, which must exist then, or
            ``~/.config/quantbench/node.toml``, which need not.

    Raises:
        NodeConfigError: it cannot be read, is no TOML, has unknown keys or bad labels, or an
            interpreter does not exist or cannot be executed.
    """
    named = path or os.environ.get(VARIABLE)
    file = Path(named or DEFAULT).expanduser()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            hint = f"; write it, or unset {VARIABLE}" if path is None else ""
            raise NodeConfigError(f"{file}: there is no such file{hint}") from None
        return NodeConfig(file)
    except OSError as error:
        raise NodeConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NodeConfigError(f"{file}: this is no TOML: {error}") from error
    for key in content:
        if key not in _TABLES:
            raise NodeConfigError(f"{file}: unknown key '{key}'; known: {', '.join(_TABLES)}")
    labels, environments = (_texts(file, name, content.get(name, {})) for name in _TABLES)
    for key, value in labels.items():
        _check_label(file, key, value)
    return NodeConfig(
        file,
        labels,
        {name: _interpreter(file, name, text) for name, text in environments.items()},
    )


def _texts(file: Path, table: str, found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        raise NodeConfigError(f"{file}: '{table}' is a table; write [{table}] above its keys")
    for key, value in found.items():
        if isinstance(value, dict):
            # An unquoted `qb.board = …` is a table in TOML.
            raise NodeConfigError(f'{file}: {table}.{key} is a table; put keys with dots in ""')
        if not isinstance(value, str):
            raise NodeConfigError(f'{file}: {table}.{key} is no text; put its value in ""')
    return found


def _check_label(file: Path, key: str, value: str) -> None:
    if not is_key(key):
        raise NodeConfigError(
            f"{file}: labels: '{key}' is no label of a node; labels are like place or qb/board"
        )
    if key.startswith("ray.io/"):
        raise NodeConfigError(f"{file}: labels: '{key}' is Ray's own; choose another name")
    if key.startswith(OURS) and key not in KEYS:
        near = get_close_matches(key, KEYS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(KEYS)}"
        raise NodeConfigError(
            f"{file}: labels: unknown key '{key}'; {hint} Keys of your own begin otherwise"
        )
    if not is_value(value):
        raise NodeConfigError(
            f"{file}: labels.{key}: '{value}' is no value of a label: that is 1 to 63 letters, "
            "digits, '.', '_' and '-', a letter or digit first and last"
        )


def _interpreter(file: Path, backend: str, text: str) -> Path:
    where = f"{file}: environments.{backend}: {text}"
    # Links are kept: what a virtual environment's python links to knows nothing of it.
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise NodeConfigError(f"{where} is no absolute path; write where its python is")
    if path.is_dir():
        raise NodeConfigError(f"{where} is a folder; write the path of its python")
    if not path.exists():
        raise NodeConfigError(f"{where} does not exist; create the environment, or fix the path")
    if not os.access(path, os.X_OK):
        raise NodeConfigError(f"{where} cannot be executed; write the path of its python")
    return path
