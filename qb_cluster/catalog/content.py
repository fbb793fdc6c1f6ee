"""What the names of a cell stand for once they are loaded, and the key of a cell's numbers."""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b, file_digest
from importlib.metadata import PackageNotFoundError, version
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

from qb_cluster.catalog import plugins
from qb_cluster.catalog.arithmetic import arithmetic_digest
from qb_cluster.catalog.counted import RESULT
from qb_cluster.catalog.dataset import Dataset
from qb_cluster.catalog.model import file_kind
from qb_cluster.catalog.value_digest import array_digest, value_digest
from qb_cluster.contracts import Backend, Cell, Content, Ref
from qb_cluster.errors import PlugInError

KEY_VERSION: Final = 1
"""Raise it when code outside ``arithmetic.ROOMS`` makes equal cells give other numbers."""
FLOAT: Final = "float"
_ALWAYS: Final = ("qb-cluster", "numpy")  # what every backend stands on
_KEPT_APART: Final = re.compile(rb"\n\x08location\x12([\x80-\xff]?[\x01-\x7f])")


def model_digest(model: Any, factory: Callable[..., Any], options_json: str = "{}") -> str:
    """Digest a model that was just loaded and not used yet: weights and code.

    A model file or SavedModel counts by its bytes (and those of ONNX weights beside it); a torch
    or Keras model by its tensors, its structure and the attributes of its modules; anything else
    by its arrays and attributes; all but files by the code of the factory and of the model's
    classes too, see ``source_code``. Objects that cannot be gone through count by code alone.

    Args:
        model: what the factory gave.
        factory: what the spec names.
        options_json: what the factory was told; there may be traces of it that nobody sees.

    Returns:
        32 hex digits.

    Raises:
        PlugInError: a model file cannot be read.
    """
    if isinstance(model, str | Path) and Path(model).exists():
        try:
            return _path_digest(Path(model))
        except OSError as error:
            raise PlugInError(f"{model} cannot be read: {error.strerror}") from error
    return value_digest(model, factory, options_json)


def dataset_digest(dataset: Dataset) -> str:
    """Digest ids and arrays of both parts: so the preprocessing counts too.

    The order of several inputs counts, since a model file may be fed by position.

    Returns:
        32 hex digits.
    """
    digest = blake2b(digest_size=16)
    for part in (dataset.inputs, dataset.calibration):
        for name, array in part.items():
            digest.update(json.dumps(name).encode())
            digest.update(array_digest(array))
    for array in (dataset.targets, dataset.ids, dataset.calibration_ids):
        digest.update(array_digest(array))
    return digest.hexdigest()


def code_digest(function: Any) -> str:
    """Digest a callable: its code, and what it carries (defaults, attributes, closure).

    Returns:
        32 hex digits.
    """
    return value_digest(function)


def backend_digest(backend: Backend, ref: Ref) -> str:
    """Digest a plug-in's code, its options, our arithmetic, and versions of what it stands on.

    Returns:
        32 hex digits.
    """
    return _backend_digest(
        ref.target, ref.options_json, type(backend), tuple(backend.distributions)
    )


@lru_cache  # every cell asks, and looking versions up takes milliseconds
def _backend_digest(
    target: str, options_json: str, made: type, distributions: tuple[str, ...]
) -> str:
    versions = {name: _version(name) for name in sorted({*_ALWAYS, *distributions})}
    found = plugins.find("backend", target)
    return value_digest(found, made, versions, arithmetic_digest(), options_json)


@lru_cache(maxsize=2**12)
def scheme_digest(ref: Ref | None) -> str:
    """Digest a scheme with every option, and its weight quantizer's code; ``None`` is float.

    Raises:
        PlugInError: it cannot be made.
    """
    return FLOAT if ref is None else value_digest(plugins.make("scheme", ref))


def content_of(cell: Cell, model: str, dataset: str, backend: Backend) -> Content:
    """Say what a cell's names stand for.

    Args:
        cell: names them.
        model: digest of its model.
        dataset: digest of its dataset.
        backend: its backend.

    Raises:
        PlugInError: its metric cannot be imported.
    """
    metric = cell.measure.metric
    return Content(
        model=model,
        dataset=dataset,
        backend=backend_digest(backend, cell.backend),
        metric=value_digest(
            code_digest(plugins.find("metric", metric.target)), metric.options_json
        ),
    )


def cell_key(cell: Cell, content: Content, scheme: str, fingerprint: str | None) -> str:
    """Hash everything that can change a cell's numbers.

    Args:
        cell: less what ``counted.RESULT`` names.
        content: of its float baseline.
        scheme: digest of its scheme.
        fingerprint: of the hardware its latency was measured on; ``None`` for what has not been
            timed, where the latency protocol does not count either.

    Returns:
        32 hex digits.
    """
    parts = (
        f"{KEY_VERSION} {scheme}",
        RESULT.text(cell),
        RESULT.part(content),
        "" if fingerprint is None else f"{fingerprint} {RESULT.part(cell.measure.latency)}",
    )
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _path_digest(path: Path) -> str:
    """Digest a model file and the weights beside it, or a folder."""
    if path.is_dir():
        files = sorted(found for found in path.rglob("*") if found.is_file())
        names = [str(file.relative_to(path)) for file in files]
    else:
        files = [path, *(_onnx_weights(path) if file_kind(path) == "onnx" else ())]
        names = ["", *(file.name for file in files[1:])]  # its own name says nothing
    digest = blake2b(digest_size=16)
    for name, file in zip(names, files, strict=True):
        digest.update(json.dumps(name).encode())
        with file.open("rb") as opened:
            digest.update(file_digest(opened, lambda: blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def _onnx_weights(path: Path) -> list[Path]:
    """Find the files that tensors of an ONNX file point at, without reading protobuf.

    In the wire format the value of the key ``location`` is its length, 7 bits to a byte, and its
    text. A chance hit names no file.
    """
    names = set()
    if not path.stat().st_size:
        return []
    with path.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
        for found in _KEPT_APART.finditer(data):
            length = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(found.group(1)))
            names.add(data[found.end() : found.end() + length])
    files = [path.parent / name.decode("utf-8", "replace") for name in names if b"\0" not in name]
    return sorted(file for file in files if file.is_file())
