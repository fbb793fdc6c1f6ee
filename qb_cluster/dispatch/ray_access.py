"""Whether a Ray cluster may be used, and by whom: asked before Ray connects to it.

Ray itself would wait long, or say it in words about its insides.
"""

import ipaddress
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from qb_cluster.dispatch.ray_token import TOKEN, TOKEN_PATH, ensure_token, make_private, token_file
from qb_cluster.errors import PoolError

AUTH_MODE: Final = "RAY_AUTH_MODE"
_ANSWER_S: Final = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """What a cluster tells at its door.

    Attributes:
        asks_for_token: whether only those with its token are let in.
        hosts: addresses of the nodes that are alive.
        ray: version of Ray at the head, and ``python`` that of Python; empty where it is not told.
    """

    asks_for_token: bool
    hosts: tuple[str, ...]
    ray: str = ""
    python: str = ""


def knock(address: str) -> Access:
    """Ask a cluster that listens, first without a token; leaves the mode that it takes.

    A token is shown to nobody who does not ask for one.

    Args:
        address: ``host:port`` of its head. At a closed port Ray would wait for 40 s.

    Raises:
        PoolError: it does not take this machine's token, or there is none.
    """
    from ray.exceptions import AuthenticationError

    with _no_native_messages():
        try:
            set_auth_mode("disabled")
            return _ask(address, asks_for_token=False)
        except AuthenticationError:
            pass
    if (file := token_file()) is not None:
        _warn(make_private(file))
    set_auth_mode("token")
    if not _has_token():
        raise PoolError(
            f"the Ray cluster at '{address}' asks for a token and this machine has none; "
            f"`ray get-auth-token` on its head prints it: put it into {file}, "
            f"or the path of a file that holds it into {TOKEN_PATH}"
        )
    with _no_native_messages():
        try:
            return _ask(address, asks_for_token=True)
        except AuthenticationError as error:
            raise PoolError(
                f"the Ray cluster at '{address}' does not take this machine's token, which is in "
                f"{file or TOKEN}; `ray get-auth-token` on its head prints the one that it takes"
            ) from error


def refuse_open(address: str, access: Access) -> None:
    """Refuse a cluster that lets anybody in, unless nobody but this machine reaches it.

    Raises:
        PoolError: it is such a one.
    """
    reachable = sorted({host for host in access.hosts if not is_loopback(host)})
    if access.asks_for_token or not reachable:
        return
    listed = ", ".join(reachable[:3]) + (", …" if len(reachable) > 3 else "")
    raise PoolError(
        f"the Ray cluster at '{address}' asks for no token: whoever reaches its nodes ({listed}) "
        "over the network can run any code on them. Make a token on its head with `ray "
        "get-auth-token --generate`, copy ~/.ray/auth_token to every machine, and start all "
        f"nodes again with {AUTH_MODE}=token; or accept the danger with --allow-unauthenticated"
    )


def refuse_versions(address: str, access: Access) -> None:
    """Refuse a head whose Ray or Python is not this driver's, as Ray would.

    Raises:
        PoolError: names both sides.
    """
    import ray

    there, here = (access.ray, access.python), (ray.__version__, platform.python_version())
    if all(there) and there != here:
        raise PoolError(
            f"the Ray cluster at '{address}' runs Ray {there[0]} with Python {there[1]}, and this "
            f"driver Ray {here[0]} with Python {here[1]}; install the same on both"
        )


def prepare_own() -> None:
    """Have a token for a Ray of our own, that no other user of this machine can read.

    Raises:
        PoolError: there is none, and it cannot be written.
    """
    mode = os.environ.get(AUTH_MODE)
    if mode is not None and mode.lower() != "token":
        return
    file = token_file()
    if file is not None:
        ensure_token(file)
        _warn(make_private(file))


def set_auth_mode(mode: str | None) -> None:
    """Have this process, and Ray processes that it starts, use tokens or not.

    Args:
        mode: ``token`` or ``disabled``; ``None`` leaves it to Ray.
    """
    if mode is None:
        os.environ.pop(AUTH_MODE, None)
    else:
        os.environ[AUTH_MODE] = mode
    # Ray has read the variable when it was imported, and keeps the token that it saw last.
    native = _native()
    native.Config.initialize("")
    native.AuthenticationTokenLoader.instance().reset_cache()


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from its own machine only; names never are."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _native() -> Any:
    """Give Ray's native module: no public part of Ray asks a cluster without joining it."""
    import ray

    return ray._raylet  # noqa: SLF001


def _has_token() -> bool:
    return bool(_native().AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _ask(address: str, *, asks_for_token: bool) -> Access:
    from ray.core.generated import gcs_pb2

    client = _native().GcsClient(address=address)
    nodes = client.get_all_node_info(timeout=_ANSWER_S).values()
    hosts = (n.node_manager_address for n in nodes if n.state == gcs_pb2.GcsNodeInfo.ALIVE)
    told = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=_ANSWER_S)
    versions = json.loads(told) if told else {}
    return Access(
        asks_for_token,
        tuple(hosts),
        str(versions.get("ray_version", "")),
        str(versions.get("python_version", "")),
    )


@contextmanager
def _no_native_messages() -> Iterator[None]:
    """Keep Ray's own lines about a refusal off the terminal; they are printed by native code."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _warn(warning: str | None) -> None:
    if warning is not None:
        _LOG.warning("warning: %s", warning)
