"""The command that installs an optional part of QuantBench, or of a plug-in, in this Python."""

import json
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

OWN: Final = "qb-cluster"
TORCH: Final = "torch==2.13.0"  # of constraints.txt; with the pin pip takes the CPU build it has
_WITH_TORCH: Final = frozenset(
    {"pytorch", "tflite", "onnxruntime", "models", "architectures", "all"}
)


def install_line(*extras: str, name: str = OWN) -> str:
    """Give the command that adds extras to a distribution, from where that was installed.

    A checkout is named by its folder, an archive and a repository by their URL, and all else by
    the name alone, for the package index.

    Args:
        extras: at least one.
        name: of the distribution.
    """
    wanted = ",".join(extras)
    pins = f" {TORCH}" if name == OWN and not _WITH_TORCH.isdisjoint(extras) else ""
    return f"{_pip()} install {_requirement(name, wanted, _origin(name))}{pins}"


def install_lines(needs: Iterable[tuple[str, str]]) -> list[str]:
    """Give one command per distribution for pairs of its name and an extra."""
    by_name: dict[str, dict[str, None]] = {}
    for name, extra in needs:
        by_name.setdefault(name, {})[extra] = None
    return [install_line(*extras, name=name) for name, extras in by_name.items()]


def _requirement(name: str, extras: str, origin: dict[str, Any]) -> str:
    url = origin.get("url", "")
    if "dir_info" in origin:
        folder = Path(url2pathname(urlsplit(url).path))
        if folder.is_dir():
            editable = "-e " if origin["dir_info"].get("editable") else ""
            return f'{editable}"{folder}[{extras}]"'
    if vcs := origin.get("vcs_info"):
        return f'"{name}[{extras}] @ {vcs["vcs"]}+{url}@{vcs["commit_id"]}"'
    if "archive_info" in origin:
        return f'"{name}[{extras}] @ {url}"'
    return f'"{name}[{extras}]"'


def _origin(name: str) -> dict[str, Any]:
    """Read where a distribution was installed from: direct_url.json of the packaging standard."""
    try:
        found = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pip() -> str:
    """Name the pip of this Python: the one on the path may be of another."""
    here, pip = Path(sys.executable).parent, shutil.which("pip")
    is_ours = pip is not None and Path(pip).parent == here
    return "pip" if is_ours else f"{sys.executable} -m pip"
