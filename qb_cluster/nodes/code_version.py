"""Which code of QuantBench this is: a version says little about a checkout that is worked on."""

import hashlib
import platform
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import qb_cluster
from qb_cluster import __version__

_DISTRIBUTION = "qb-cluster"


@cache
def code_version() -> str:
    """Name our own code and the Python it runs in: ``0.1.0 (code 3f2a9c01, Python 3.11.7)``.

    The code is a digest of every source file of ``qb_cluster``, of the backends that come with it
    and of what two of them share; plug-ins of others are the sweep's content, and digested as such.
    """
    digest = hashlib.blake2b(digest_size=4)
    for package in sorted({qb_cluster.__name__, "qb_litert", *_own_backends()}):
        found = find_spec(package)
        for place in found.submodule_search_locations or () if found else ():
            for file in sorted(Path(place).rglob("*.py")):
                digest.update(f"{package}/{file.relative_to(place)}\0".encode())
                digest.update(file.read_bytes())
    return f"{__version__} (code {digest.hexdigest()}, Python {platform.python_version()})"


def _own_backends() -> set[str]:
    return {
        point.module.partition(".")[0]
        for point in entry_points(group="qb_cluster.backends")
        if point.dist is not None and point.dist.name == _DISTRIBUTION
    }
