"""Named arrays as a list for the JSON header and the raw bytes that follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> tuple[list[list[Any]], list[bytes]]:
    """Give name, dtype and shape of each array, and its bytes.

    Raises:
        ValueError: an array holds Python objects.
    """
    described, payloads = [], []
    for name, values in arrays.items():
        if values.dtype.hasobject:
            raise ValueError(f"'{name}' holds Python objects; only numbers travel to a board")
        described.append([name, values.dtype.str, list(values.shape)])
        payloads.append(values.tobytes())
    return described, payloads


def unpack_arrays(
    described: Sequence[Sequence[Any]], payloads: Sequence[bytes]
) -> dict[str, NDArray[Any]]:
    """Undo ``pack_arrays``; the arrays may be written to, as a backend's own may."""
    return {
        name: np.frombuffer(payload, np.dtype(dtype)).reshape(shape).copy()
        for (name, dtype, shape), payload in zip(described, payloads)  # noqa: B905  Python 3.8
    }
