"""Where the head of a Ray cluster listens, found out before Ray tries: it would for minutes."""

import os
import socket
from typing import Any, Final

from qb_cluster.errors import PoolError

CONNECT_TIMEOUT_S: Final = 5.0
PORT: Final = "6379"
"""Of a head that was started without one."""
_LOOPBACK: Final = "127.0.0.1"
_PROBE_S: Final = 0.5
# An end of HTTP/2 begins with this and a frame of settings, whose header has its type fourth.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
_HEADER_BYTES: Final = 9
_TYPE, _SETTINGS = 3, 4


def find_head(address: str) -> str:
    """Give the ``host:port`` of a cluster's head, once it is known that it listens there.

    Args:
        address: as a user writes it: ``host:port``, ``host``, or ``auto`` for the cluster that
            this machine is in.

    Raises:
        PoolError: it is no address, what listens there is no head, or there are several that it
            may mean.
        OSError, ConnectionError: nobody listens there, or Ray finds none.
    """
    from ray._private import services

    if address != "auto":
        address = _whole(address)
    elif not os.environ.get("RAY_ADDRESS"):
        _refuse_several(services)
    # What "auto" means, too. Ray takes loopback for this machine's outer address, where a cluster
    # that listens at loopback alone is not; it leaves the same address in the form of IPv6 alone.
    found: str = services.canonicalize_bootstrap_address_or_die(address)
    host, port = split_address(found)
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        if host != services.get_node_ip_address() or not _listens((_LOOPBACK, port)):
            raise
        host, found = _LOOPBACK, f"[::ffff:{_LOOPBACK}]:{port}"
    if not _is_grpc((host, port)):
        raise PoolError(f"what listens at '{address}' is no head of a Ray cluster")
    return found


def split_address(address: str) -> tuple[str, int]:
    """Give host and port of ``host:port``."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _whole(address: str) -> str:
    host, _, port = address.rpartition(":") if ":" in address else (address, "", PORT)
    if not host or not port.isdecimal() or "/" in address:
        raise PoolError(f"'{address}' is no address of a Ray cluster: write HOST:PORT, or auto")
    return f"{host}:{port}"


def _refuse_several(services: Any) -> None:
    """Refuse to choose: Ray would take the latest, which may be that of another sweep."""
    running = sorted(services.find_gcs_addresses())
    if len(running) > 1:
        raise PoolError(
            f"this machine is in several Ray clusters, at {' and '.join(running)}; name the one "
            "that is meant: --address HOST:PORT"
        )


def _is_grpc(address: tuple[str, int]) -> bool:
    """Tell whether HTTP/2 is spoken there, as gRPC is over it (RFC 9113, section 3.4)."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in {"0", "false", ""}:
        return True  # the other end waits for a handshake that is Ray's to make
    heard = b""
    try:
        with socket.create_connection(address, CONNECT_TIMEOUT_S) as probe:
            probe.sendall(_PREFACE)
            while len(heard) < _HEADER_BYTES and (more := probe.recv(_HEADER_BYTES - len(heard))):
                heard += more
    except OSError:
        return False
    return len(heard) == _HEADER_BYTES and heard[_TYPE] == _SETTINGS


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, _PROBE_S).close()
    except OSError:
        return False
    return True
