"""A digest of code: what it does, not how it is written.

A module counts by its syntax tree, so comments, docstrings and formatting do not; with it count
the modules of the user's own that it imports, anywhere in its text. What is installed counts by
its version, but the backends that come with the runner and what they share always by their code;
the standard library and the runner itself not at all (its arithmetic is part of every backend's
digest, see ``arithmetic``). Not seen: modules found only while running (``importlib``), data files
that code reads, and changes to an installed package that leave its version as it is.
"""

import ast
import importlib.metadata
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Final

_RUNNER: Final = "qb_cluster"
_DISTRIBUTION: Final = "qb-cluster"
_FRAMEWORKS: Final = frozenset(
    {"jax", "keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tf_keras", "torch", "torchao"}
)  # by version even where they are built in a folder of the user's own: thousands of modules
_INSTALLED: Final = ("site-packages", "dist-packages")
_STANDARD: Final = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib")
)


def source_digest(modules: Iterable[str]) -> str:
    """Digest the code of modules, and of the user's own modules that they import.

    Args:
        modules: names of modules that are imported already.

    Returns:
        32 hex digits.
    """
    return _digest(frozenset(modules))


@cache
def _digest(modules: frozenset[str]) -> str:
    parts: dict[str, str] = {}
    waiting = [(name, True) for name in modules]
    while waiting:
        name, is_asked_for = waiting.pop()
        if name in parts or (not is_asked_for and name.partition(".")[0] == _RUNNER):
            continue
        parts[name], imported = _module(name)
        waiting += [(other, False) for other in imported]
    described = sorted({part for part in parts.values() if part})
    return blake2b("\n".join(described).encode(), digest_size=16).hexdigest()


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Describe one module, and name the modules that its text imports."""
    top = name.partition(".")[0]
    path = None if top in sys.builtin_module_names else _file(name)
    if path is None:  # a namespace package, or something that is not there
        return "", ()
    is_installed = any(part in path.parts for part in _INSTALLED) and top not in _own_packages()
    if top in _FRAMEWORKS or is_installed:
        return _version(top), ()
    if str(path.resolve()).startswith(_STANDARD):
        return "", ()
    return _source(name, path)


def _source(name: str, path: Path) -> tuple[str, tuple[str, ...]]:
    imported: tuple[str, ...] = ()
    try:
        source = path.read_bytes()
    except OSError:
        return name, imported
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # compiled, or for another Python
        meaning = source
    else:
        is_package = path.name == "__init__.py"
        imported = tuple(dict.fromkeys(_imports(tree, name, is_package=is_package)))
        meaning = ast.dump(_without_docstrings(tree)).encode()
    return f"{name} {blake2b(meaning, digest_size=16).hexdigest()}", imported


def _file(name: str) -> Path | None:
    """Find a module's file without importing anything."""
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None) if loaded is not None else None
    if origin is None and (spec := _spec(name)) is not None and spec.has_location:
        origin = spec.origin
    return None if origin is None else Path(origin)


@cache
def _spec(name: str) -> ModuleSpec | None:
    package, _, _ = name.rpartition(".")
    if not package:
        return PathFinder.find_spec(name)
    parent = _spec(package)
    if parent is None or parent.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, list(parent.submodule_search_locations))


@cache
def _version(top: str) -> str:
    """Give the version of what a module was installed with, whether it is imported or not."""
    try:
        return f"{top}=={importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:
        distributions = _distributions().get(top, ())
    return " ".join(f"{name}=={importlib.metadata.version(name)}" for name in distributions)


@cache
def _own_packages() -> frozenset[str]:
    """Name what is installed with the runner; nothing where that is a checkout."""
    try:
        files = importlib.metadata.files(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return frozenset()
    return frozenset(file.parts[0] for file in files or ())


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return {
        top: sorted(set(names))
        for top, names in importlib.metadata.packages_distributions().items()
    }


def _imports(tree: ast.AST, name: str, *, is_package: bool) -> Iterator[str]:
    """Name what may be a module among the imports of a module, with the packages around it."""
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in found:
            names = module.split(".")
            yield from (".".join(names[:depth]) for depth in range(1, len(names) + 1))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            node.body = node.body[1:]
    return tree
