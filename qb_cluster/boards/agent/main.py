"""The agent: reads requests from stdin, answers on what was stdout, leaves nothing behind.

The main thread does the work. One thread reads, so that the end of the driver is noticed in the
middle of a run; one waits for signals, which a runtime's native code would keep waiting.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import queue
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qb_cluster.boards.agent.artifact_files import (
    ArtifactFiles,
    free_disk_bytes,
    free_memory_bytes,
)
from qb_cluster.boards.agent.board_lock import BoardLock
from qb_cluster.boards.agent.private_folder import PrivateFolder
from qb_cluster.boards.agent.refusal import Refusal
from qb_cluster.boards.agent.wire import LENGTH, PREAMBLE, encode, header_bytes, split
from qb_cluster.nodes.machine import describe_machine

if TYPE_CHECKING:
    from qb_cluster.boards.agent.models import Models

ENDED = 75
"""Exit status of an agent that was ended from outside: by a signal, or by silence."""

_SIGNALS = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
_CHUNK = 1 << 20


class Agent:
    """One connection's agent.

    Args:
        runtime: name of the backend's module for boards.
        folder: this agent's own folder.
        silence_s: seconds without a byte from the driver after which it counts as gone.
        output: descriptor to answer on.
    """

    def __init__(self, runtime: str, folder: Path, silence_s: float, output: int) -> None:
        self._runtime_name = runtime
        self._silence_s = silence_s
        self._output = output
        self._folder = PrivateFolder(folder)
        self._lock = BoardLock(folder.parent)
        self._files = ArtifactFiles(folder)
        self._requests: queue.Queue[tuple[dict[str, Any], list[bytes]]] = queue.Queue()
        self._ending = threading.Lock()
        self._loaded: Models | None = None

    def serve(self) -> None:
        """Answer requests until something ends the process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for work in (self._await_signal, self._read):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()
        self._guarded(self._answer_all)

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BrokenPipeError:
            self._end(0, "")
        except BaseException:
            self._end(1, traceback.format_exc())

    def _end(self, status: int, reason: str) -> None:
        with self._ending:
            self._folder.remove()
            self._lock.release()
            # Last, and without waiting: where the network is dead nobody empties the pipe, and
            # another thread may wait in the middle of a write with Python's own lock of stderr.
            if reason:
                with contextlib.suppress(OSError):
                    os.set_blocking(2, False)
                    os.write(2, f"quantbench: {reason}\n".encode())
            os._exit(status)

    def _await_signal(self) -> None:
        number = signal.sigwait(_SIGNALS)
        self._end(ENDED, f"the agent was ended by {signal.Signals(number).name}")

    def _read(self) -> None:
        while True:
            header = json.loads(self._exactly(header_bytes(self._exactly(LENGTH.size))))
            payload = self._exactly(sum(header["sizes"]))
            if header["do"] != "ping":
                self._requests.put((header, split(payload, header["sizes"])))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not select.select([0], [], [], self._silence_s)[0]:
                self._end(ENDED, f"nothing was heard from the driver for {self._silence_s:g} s")
            chunk = os.read(0, min(_CHUNK, size - len(data)))
            if not chunk:
                self._end(0, "")
            data += chunk
        return bytes(data)

    def _answer_all(self) -> None:
        self._write(PREAMBLE)
        self._folder.remove_dead_neighbours()
        while True:
            header, payloads = self._requests.get()
            try:
                answer, results = self._do(header, payloads)
            except Refusal as refusal:
                answer, results = {"error": refusal.kind, "message": str(refusal)}, []
            except MemoryError:
                message = "the board's memory is not enough to run this; take a smaller batch"
                answer, results = {"error": "no_memory", "message": message}, []
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                story = traceback.format_exc()
                answer, results = {"error": "failed", "message": message, "traceback": story}, []
            self._write(encode(answer, results))

    def _do(self, header: dict[str, Any], payloads: list[bytes]) -> Any:
        """Do what one request asks for; give the answer's header and payloads."""
        do = header["do"]
        if do == "hello":
            return self._hello(), []
        if do == "lock":
            holder = self._lock.take(header["owner"], header["who"], header["since"])
            if holder is not None:
                return {"busy": {key: holder.get(key, "") for key in ("who", "since")}}, []
            self._folder.remove_dead_neighbours()  # whom we took it from may have left some
            return {}, []
        if do == "has":
            return {"has": self._files.has(header["digest"], header["size"])}, []
        if do == "put":
            self._files.put(header["digest"], payloads[0])
            return {}, []
        return self._do_with_models(do, header, payloads)

    def _do_with_models(self, do: str, header: dict[str, Any], payloads: list[bytes]) -> Any:
        from qb_cluster.boards.agent.arrays import pack_arrays, unpack_arrays

        models = self._models()
        if do == "open":
            data = self._files.read(header["digest"])
            return {"handle": models.open(data, header["threads"], header["cores"])}, []
        if do == "close":
            models.close(header["handle"])
            return {}, []
        inputs = unpack_arrays(header["arrays"], payloads)
        if do == "run":
            described, results = pack_arrays(models.run(header["handle"], inputs))
            return {"arrays": described}, results
        if do == "time":
            return models.time(header["baseline"], header["quantized"], inputs, header["settings"])
        raise Refusal("failed", f"the agent cannot '{do}'")

    def _models(self) -> Models:
        if self._loaded is None:
            from qb_cluster.boards.agent.models import Models

            self._loaded = Models(importlib.import_module(self._runtime_name))
        return self._loaded

    def _hello(self) -> dict[str, Any]:
        """Describe the board.

        Raises:
            Refusal: ``setup``: NumPy or the runtime is missing or cannot be loaded.
        """
        here = f"{sys.executable} (Python {platform.python_version()})"
        try:
            numpy = importlib.import_module("numpy")
        except ImportError as error:
            raise Refusal(
                "setup",
                f"{here} has no NumPy that can be loaded ({error}); install it there: "
                f"{sys.executable} -m pip install 'numpy<2' tflite-runtime",
            ) from error
        try:
            runtime, version = importlib.import_module(self._runtime_name).installed()
        except ImportError as error:
            raise Refusal(
                "setup",
                f"{here} has no runtime that can be loaded ({error}); install one there: "
                f"{sys.executable} -m pip install tflite-runtime (or ai-edge-litert)",
            ) from error
        return {
            "machine": describe_machine(),
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "runtime": runtime,
            "runtime_version": version,
            "free_memory_bytes": free_memory_bytes(),
            "free_disk_bytes": free_disk_bytes(self._folder.path),
            "pid": os.getpid(),
        }

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._output, rest) :]


def main(runtime: str) -> None:
    """Serve; the bootstrap has left our folder and the seconds of silence in ``sys.argv``."""
    # Whatever prints, in Python or in native code, must not print into the protocol.
    output = os.dup(1)
    os.dup2(2, 1)
    Agent(runtime, Path(sys.argv[1]), float(sys.argv[2]), output).serve()
