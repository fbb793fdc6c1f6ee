"""Frames: four bytes of length, a JSON header, then the raw payloads whose sizes it gives.

Used at both ends.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PREAMBLE = b"\0QuantBench agent 1\n"
"""Before the agent's first frame: what a login shell printed before it is skipped."""

LENGTH = struct.Struct("!I")
MOST_HEADER_BYTES = 16 << 20


def encode(header: dict[str, Any], payloads: Sequence[bytes] = ()) -> bytes:
    """Make a frame."""
    text = json.dumps({**header, "sizes": [len(payload) for payload in payloads]}).encode()
    return b"".join([LENGTH.pack(len(text)), text, *payloads])


def header_bytes(length: bytes) -> int:
    """Read how long a header is.

    Raises:
        ValueError: it is longer than any of ours: something else writes into the stream.
    """
    size = int(LENGTH.unpack(length)[0])
    if size > MOST_HEADER_BYTES:
        raise ValueError(f"no frame of the agent starts with {length!r}")
    return size


def split(payload: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut what follows a header into its payloads."""
    parts, start = [], 0
    for size in sizes:
        parts.append(payload[start : start + size])
        start += size
    return parts
