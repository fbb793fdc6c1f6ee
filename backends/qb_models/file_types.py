"""Magika, Google's model that tells the type of a file from its bytes, and files for it.

The model is the ``.onnx`` of the wheel ``magika`` (Apache-2.0).
"""

import gzip
import importlib.util
import io
import json
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_models.wheels import missing, wheel_file

MOST: Final = 24
"""Files of one type, for each of evaluation and calibration."""
EDGE: Final = 1024
"""Bytes of a file's beginning, and of its end, that the model sees."""
BLOCK: Final = 4096
PADDING: Final = 256

_INSTALLED: Final = (
    ("c", "numpy", "*.h"),
    ("csv", "sklearn", "*.csv"),
    ("pdf", "matplotlib", "*.pdf"),
    ("png", "matplotlib", "*.png"),
    ("rst", "sklearn", "*.rst"),
    ("svg", "matplotlib", "*.svg"),
    ("ttf", "matplotlib", "*.ttf"),
)
"""Type, package and pattern of files that packages install."""


def magika() -> Path:
    """Give the path of the model.

    It takes int32 ``(n, 2048)`` and returns the probabilities of 214 types.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    return _file("model.onnx")


def files() -> dict[str, Any]:
    """Give files of ten types that lie about where Python is installed, or are made of these.

    Returns:
        ``inputs`` int32 ``(n, 2048)``: the first and last 1,024 bytes, or 256 where there is none;
        ``targets`` int64 ``(n,)``, the type, as the model numbers it; ``calibration``: as many
        files. There are about 200 of each; which ones depends on the versions installed.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    types = json.loads(_file("config.min.json").read_bytes())["target_labels_space"]
    parts: tuple[list[tuple[str, str, bytes]], ...] = ([], [])
    for kind, found in _found().items():
        for index, (name, content) in enumerate(found[: 2 * MOST]):
            parts[index % 2].append((kind, name, content))
    evaluation, calibration = parts
    return {
        "inputs": np.stack([_features(content) for _, _, content in evaluation]),
        "targets": np.array([types.index(kind) for kind, _, _ in evaluation], np.int64),
        "ids": [f"{kind}:{name}" for kind, name, _ in evaluation],
        "calibration": {
            "inputs": np.stack([_features(content) for _, _, content in calibration]),
            "ids": [f"{kind}:{name}" for kind, name, _ in calibration],
        },
    }


def _found() -> dict[str, list[tuple[str, bytes]]]:
    """Give names and contents of files of distinct content, by type."""
    found = {"python": list(_library())}
    for kind, package, pattern in _INSTALLED:
        folder = _folder(package)
        files = sorted(folder.rglob(pattern))
        found[kind] = [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files]
    found["gzip"] = [(name, gzip.compress(data, mtime=0)) for name, data in found["python"]]
    found["npy"] = [(name, _as_npy(data)) for name, data in found["python"]]
    found["zip"] = [(name, _as_zip(name, data)) for name, data in found["python"]]
    return {kind: list({data: (name, data) for name, data in files}.values())
            for kind, files in found.items()}  # fmt: skip


def _library() -> Iterator[tuple[str, bytes]]:
    """Give modules of the standard library, the small ones left out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    large = (file for file in files if file.stat().st_size > BLOCK)
    for file, _ in zip(large, range(2 * MOST), strict=False):
        yield file.name, file.read_bytes()


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise missing(package)
    return Path(spec.origin).parent


def _as_npy(data: bytes) -> bytes:
    """Write what the bytes' counts are, as an array."""
    file = io.BytesIO()
    np.save(file, np.bincount(np.frombuffer(data, np.uint8), minlength=256))
    return file.getvalue()


def _as_zip(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def _features(content: bytes) -> NDArray[np.int32]:
    """Give what the model sees of a file, as ``magika.Magika`` does."""
    features = np.full(2 * EDGE, PADDING, np.int32)
    first = np.frombuffer(content[:BLOCK].lstrip()[:EDGE], np.uint8)
    last = np.frombuffer(content[-BLOCK:].rstrip()[-EDGE:], np.uint8)
    features[: len(first)] = first
    features[2 * EDGE - len(last) :] = last
    return features


def _file(name: str) -> Path:
    return wheel_file("magika", f"magika/models/standard_v3_3/{name}")
