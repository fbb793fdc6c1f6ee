"""Finding plug-ins: a registered name, or an import path ``package.module:callable``.

A model may also be a file, see ``catalog.model``: making it gives its absolute path.
Ours come through the same entry-point groups as anybody's, so there is no second door.
"""

import difflib
import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Literal, get_args

from qb_cluster.catalog.model import file_kind, names_file
from qb_cluster.catalog.module_names import missing_inside, missing_top
from qb_cluster.contracts import Ref
from qb_cluster.errors import PlugInError

Kind = Literal["model", "dataset", "scheme", "metric", "backend"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_FILES: Final = ".onnx, .tflite, .keras, .pt2, or a SavedModel folder"


@cache
def registered(kind: Kind) -> Mapping[str, EntryPoint]:
    """Give the entry points of the group ``qb_cluster.<kind>s``, by name."""
    return {point.name: point for point in entry_points(group=f"qb_cluster.{kind}s")}


def nearest(name: str, known: list[str]) -> str:
    """End an error message with the nearest known name, or with all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def is_model_file(kind: Kind, target: str) -> bool:
    """Tell whether a target is the path of a model file; registered names come first."""
    return kind == "model" and target not in registered(kind) and names_file(target)


def check(kind: Kind, target: str) -> None:
    """Refuse a target that cannot exist, without importing the user's code.

    Raises:
        PlugInError: no such registered name, a malformed import path, no such module or nothing
            of that name in it, as far as its source tells, or no such model file.
    """
    _check_form(kind, target)
    if ":" in target and not is_model_file(kind, target):
        module, _, attribute = target.partition(":")
        if (missing := missing_inside(module, attribute)) is not None:
            raise PlugInError(f"{kind} '{target}': {missing}")


def _check_form(kind: Kind, target: str) -> None:
    if is_model_file(kind, target):
        _check_file(target)
        return
    if ":" not in target:
        if target not in registered(kind):
            hint = nearest(target, list(registered(kind)))
            raise PlugInError(f"unknown {kind} '{target}'{hint} (or write package.module:callable)")
        return
    module, _, attribute = target.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise PlugInError(f"'{target}' is no import path; write package.module:callable")
    if (missing := missing_top(module, attribute)) is not None:
        raise PlugInError(f"{kind} '{target}': {missing}")


def _check_file(target: str) -> None:
    try:
        exists, kind = Path(target).exists(), file_kind(target)
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise PlugInError(f"model file '{target}' cannot be looked up: {error}") from error
    if not exists:
        raise PlugInError(
            f"there is no model file '{target}' in the folder where qb runs, {Path.cwd()}"
        )
    if kind is None:
        what = "is a folder without saved_model.pb" if Path(target).is_dir() else "is none"
        raise PlugInError(f"a model file is {_FILES}; '{target}' {what}")


def find(kind: Kind, target: str) -> Any:
    """Import what a target names; for a model file, give a callable that returns its path.

    Raises:
        PlugInError: it cannot be imported, or there is no such file.
    """
    _check_form(kind, target)
    if is_model_file(kind, target):
        return lambda: Path(target).absolute()
    try:
        if ":" not in target:
            return registered(kind)[target].load()
        module, _, attribute = target.partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise PlugInError(
            f"{kind} '{target}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return found


def make(kind: Kind, ref: Ref) -> Any:
    """Call what a ref names with its options.

    Raises:
        PlugInError: it cannot be imported, is not callable, or raised.
    """
    factory = find(kind, ref.target)
    if not callable(factory):
        raise PlugInError(f"{kind} '{ref.target}' is not callable")
    try:
        return factory(**ref.options)
    except (Exception, SystemExit) as error:
        raise PlugInError(f"{kind} '{ref.label}' raised {type(error).__name__}: {error}") from error
