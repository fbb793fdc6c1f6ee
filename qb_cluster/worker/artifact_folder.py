"""Artifacts and baseline outputs on disk, named by what they contain."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Artifact, ArtifactRef
from qb_cluster.errors import CellError
from qb_cluster.storage import Folder, open_folder


class ArtifactFolder:
    """A folder of files whose names are digests of their content.

    Several workers may write at once: a file appears under its name only when it is whole,
    and whoever writes the same content writes the same file.

    Args:
        place: a folder, or a path or URL of one; made on the first write.
    """

    def __init__(self, place: Folder | str | Path) -> None:
        self._folder = open_folder(place) if isinstance(place, str | Path) else place

    def put(self, artifact: Artifact) -> ArtifactRef:
        """Keep an artifact."""
        digest = self._write(artifact.data, artifact.format)
        return ArtifactRef(digest, artifact.format, len(artifact.data), artifact.facts)

    def get(self, ref: ArtifactRef) -> Artifact:
        """Read an artifact back.

        Raises:
            CellError: its file is gone or damaged.
        """
        return Artifact(self._read(ref.digest, ref.format), ref.format, ref.facts)

    def put_outputs(self, outputs: NDArray[np.float32]) -> str:
        """Keep a baseline's outputs; gives their digest."""
        return self._write(_npy(outputs), "npy")

    def get_outputs(self, digest: str) -> NDArray[Any]:
        """Read a baseline's outputs back.

        Raises:
            CellError: the file is gone or damaged.
        """
        outputs: NDArray[Any] = np.load(io.BytesIO(self._read(digest, "npy")), allow_pickle=False)
        return outputs

    def put_twin(self, name: str, outputs: NDArray[np.float32]) -> None:
        """Keep the outputs of a simulated twin under the name of what decides them."""
        self._write_to(_twin(name), _npy(outputs))

    def get_twin(self, name: str) -> NDArray[Any] | None:
        """Read a twin's outputs; ``None`` where they are not kept."""
        try:
            kept = io.BytesIO(self._folder.read(_twin(name)))
            outputs: NDArray[Any] = np.load(kept, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or cut short: it is computed again
            return None
        return outputs

    def _write(self, data: bytes, ending: str) -> str:
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        self._write_to(f"{digest}.{ending}", data)
        return digest

    def _write_to(self, name: str, data: bytes) -> None:
        if self._folder.size(name) != len(data):
            self._folder.replace(name, data)

    def _read(self, digest: str, ending: str) -> bytes:
        name = f"{digest}.{ending}"
        try:
            data = self._folder.read(name)
        except OSError as error:
            why = error.strerror or error
            raise CellError(f"{self._folder}/{name} cannot be read: {why}") from error
        if hashlib.blake2b(data, digest_size=16).hexdigest() != digest:
            raise CellError(
                f"{self._folder}/{name} is damaged: its content no longer has its digest"
            )
        return data


def _twin(name: str) -> str:
    return f"twin-{name}.npy"


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
