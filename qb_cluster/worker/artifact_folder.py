"""Artifacts and baseline outputs on disk, named by what they contain."""

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Artifact, ArtifactRef
from qb_cluster.errors import CellError


class ArtifactFolder:
    """A folder of files whose names are digests of their content.

    Several workers may write at once: a file appears under its name only when it is whole,
    and whoever writes the same content writes the same file.

    Args:
        path: the folder; made on the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
        self._write_to(self._twin(name), _npy(outputs))

    def get_twin(self, name: str) -> NDArray[Any] | None:
        """Read a twin's outputs; ``None`` where they are not kept."""
        try:
            outputs: NDArray[Any] = np.load(self._twin(name), allow_pickle=False)
        except (OSError, ValueError):  # not there, or cut short: it is computed again
            return None
        return outputs

    def _twin(self, name: str) -> Path:
        return self.path / f"twin-{name}.npy"

    def _write(self, data: bytes, ending: str) -> str:
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        self._write_to(self.path / f"{digest}.{ending}", data)
        return digest

    def _write_to(self, target: Path, data: bytes) -> None:
        if target.exists() and target.stat().st_size == len(data):
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=".tmp-", delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(target)

    def _read(self, digest: str, ending: str) -> bytes:
        target = self.path / f"{digest}.{ending}"
        try:
            data = target.read_bytes()
        except OSError as error:
            raise CellError(f"{target} cannot be read: {error.strerror}") from error
        if hashlib.blake2b(data, digest_size=16).hexdigest() != digest:
            raise CellError(f"{target} is damaged: its content no longer has its digest")
        return data


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
