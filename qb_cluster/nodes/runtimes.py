"""Which runtimes are installed: here, and in the environments that a node's owner names."""

import json
import subprocess
import sys
from typing import Final

from qb_cluster.nodes import environment
from qb_cluster.nodes.labels import RUNTIMES
from qb_cluster.nodes.node_config import NodeConfig, NodeConfigError

_TIMEOUT_S: Final = 30.0  # a board's card is slow
_ASK: Final = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def installed_runtimes(config: NodeConfig) -> dict[str, str]:
    """Give versions by distribution; an environment of the owner's wins over this one.

    Raises:
        NodeConfigError: what the owner names as an interpreter is no Python 3.8 or newer.
    """
    here = environment.describe(RUNTIMES)["libraries"]
    found = {name: here[name] for name in RUNTIMES if here[name] is not None}
    for backend, python in config.environments.items():
        if str(python) != sys.executable:
            found |= _ask(config, backend)
    return found


def _ask(config: NodeConfig, backend: str) -> dict[str, str]:
    python = config.environments[backend]
    where = f"{config.path}: environments.{backend}: {python}"
    try:
        # -I: neither this folder nor PYTHONPATH belongs to that environment.
        answer = subprocess.run(  # noqa: S603  # the owner of this node names it
            [python, "-I", "-c", _ASK, *RUNTIMES],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        versions: dict[str, str] = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        raise NodeConfigError(f"{where} did not answer within {_TIMEOUT_S:.0f} s") from None
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise NodeConfigError(
            f"{where} is no Python 3.8 or newer; write the path of one: {''.join(said)}"
        ) from error
    return versions
