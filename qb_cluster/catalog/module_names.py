"""What a module defines, read from its source: nothing is imported, no framework starts.

Source tells what a module binds at its top: definitions, assignments, imports. It does not tell
what code makes while it runs (``globals()``, a ``__getattr__``, ``from … import *``), what is
compiled, or what another module puts there. Of all that nothing is said.
"""

import ast
import difflib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Final

_NEAR: Final = 0.75  # of all modules here, one that is less alike is no misspelling
_MOST_LISTED: Final = 8
_MAKERS: Final = frozenset({"globals", "exec"})
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def missing_top(module: str, attribute: str) -> str | None:
    """Tell that an import path begins with no module, and what may have been meant.

    Args:
        module: ``package.module``.
        attribute: what is looked up in it, maybe with dots.

    Returns:
        The end of a sentence; ``None`` where ``package`` is there.
    """
    top = module.partition(".")[0]
    if _top_level(top) is not None:
        return None
    form = "{}" + module.removeprefix(top) + f":{attribute}"
    where = "in the folder where qb runs, on PYTHONPATH or among the installed packages"
    return f"no module '{top}' {where}{_meant(top, _modules(None), form, _NEAR)}"


def missing_inside(module: str, attribute: str) -> str | None:
    """Tell what of an import path is not in its package or module, and what may have been meant.

    Args:
        module: ``package.module``; ``package`` is there.
        attribute: what is looked up in it, maybe with dots.

    Returns:
        The end of a sentence; ``None`` where all is there, or only importing it would tell.
    """
    top, *inner = module.split(".")
    spec = _top_level(top)
    if spec is None or top in sys.stdlib_module_names:  # partly in C, and nobody's models
        return None
    for part in inner:
        parent, spec = spec, _submodule(spec, part)
        if spec is None:
            return _missing_module(parent, part, attribute)
    return _missing_name(spec, attribute.partition(".")[0])


def _top_level(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return None


def _submodule(parent: ModuleSpec, name: str) -> ModuleSpec | None:
    """Find a module of a package without importing the package."""
    if parent.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(f"{parent.name}.{name}", list(parent.submodule_search_locations))


def _missing_module(parent: ModuleSpec, name: str, attribute: str) -> str | None:
    known = _names(parent)
    if known is None or name in known or f"{parent.name}.{name}" in sys.modules:
        return None
    form = f"{parent.name}.{{}}:{attribute}"
    hint = _meant(name, _modules(parent.submodule_search_locations), form)
    return f"{_file(parent)} has no module '{name}'{hint}"


def _missing_name(spec: ModuleSpec, name: str) -> str | None:
    known = _names(spec)
    is_special = name.startswith("__") and name.endswith("__")
    if known is None or name in known or is_special or _submodule(spec, name) is not None:
        return None
    public = sorted(one for one in known if not one.startswith("_"))
    hint = _meant(name, public, f"{spec.name}:{{}}")
    if not hint and public:
        more = ", …" if len(public) > _MOST_LISTED else ""
        hint = f"; it has {', '.join(public[:_MOST_LISTED])}{more}"
    return f"{_file(spec)} has no '{name}'{hint}"


def _meant(name: str, known: Iterable[str], form: str, cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{form.format(near[0])}'?" if near else ""


def _modules(folders: Iterable[str] | None) -> Iterator[str]:
    return (module.name for module in pkgutil.iter_modules(folders))


def _file(spec: ModuleSpec) -> str:
    """Name a module's file, briefly where it lies in the folder where qb runs."""
    path = Path(spec.origin or spec.name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _names(spec: ModuleSpec) -> frozenset[str] | None:
    """Give what a module binds at its top; ``None`` where its source does not tell."""
    if not isinstance(spec.loader, SourceFileLoader) or spec.origin is None:
        return None
    try:
        found = Path(spec.origin).stat()
        return _names_in(spec.origin, found.st_mtime_ns, found.st_size)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _names_in(path: str, *_: int) -> frozenset[str] | None:
    """Read a file as it is now: when it was changed, and its size, are a part of the question.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for whoever imports it
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # importing it will say so
        return None
    if any(map(_makes_names, ast.walk(tree))):
        return None
    names = frozenset(_bound(tree))
    return None if {"*", "__getattr__"} & names else names


def _makes_names(node: ast.AST) -> bool:
    """Tell whether a piece of code may bind names that no source shows."""
    match node:
        case ast.Name(id=name):
            return name in _MAKERS
        case ast.Call(func=ast.Name(id="vars" | "locals"), args=[]):
            return True
        case ast.Attribute(value=ast.Name(id="sys"), attr="modules"):
            return True
        case ast.ImportFrom(module="sys", names=names):
            return any(alias.name == "modules" for alias in names)
    return False


def _bound(tree: ast.Module) -> Iterator[str]:
    """Name what the top of a module binds, with what functions declare ``global``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            match node:
                case ast.Import(names=names) | ast.ImportFrom(names=names):
                    yield from (one.asname or one.name.partition(".")[0] for one in names)
                case ast.Name(id=name, ctx=ast.Store()):
                    yield name
                case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                    yield name
            if isinstance(node, _DEFINITIONS):
                yield node.name
            else:
                waiting.append(node)
