"""A worker as an actor of Ray: what is known of it, and what becomes of its calls."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qb_cluster.contracts import SshBoard
from qb_cluster.dispatch.events import Cause
from qb_cluster.dispatch.last_words import fault
from qb_cluster.dispatch.ray_cluster import Node
from qb_cluster.dispatch.worker_process import Hello
from qb_cluster.errors import BoardCrashedError, BoardLostError, QuantBenchError


@dataclass(slots=True)
class RayWorker:
    """A worker that starts or works.

    Attributes:
        calls: its pending calls in the order in which they run; the first one is the hello.
        hello: ``None`` until it is up.
        doubt: the error of a call whose cause Ray did not know yet.
        board: the board that it runs artifacts on.
        gpus: 1 when it has a GPU to itself.
    """

    node: Node
    handle: Any
    log: Path
    calls: deque[Any] = field(default_factory=deque)
    hello: Hello | None = None
    doubt: Exception | None = None
    board: SshBoard | None = None
    gpus: int = 0

    @property
    def place(self) -> str:
        """Name the node or the board whose worker it is."""
        return self.node.node_id if self.board is None else place_of(self.board)

    def answer(self, ray: Any, call: Any) -> bytes | Hello | Exception | None:
        """Give what a call came to; ``None`` while it is in doubt."""
        try:
            answer: bytes | Hello = ray.get(call)
        except ray.exceptions.ActorUnavailableError as error:
            if self.doubt is not None:
                return self.doubt
            # The connection broke before Ray heard why. Whoever asks again is told.
            self.doubt = error
            self.calls = deque([self.handle.hello.remote()])
            return None
        except ray.exceptions.RayError as error:
            ended: Exception = error
            return ended
        return self.doubt or answer  # in doubt, it lives and the call it had is lost

    def why(self, ray: Any, error: Exception) -> tuple[Cause, str]:
        """Say what ended it, and what is known of that on this machine.

        Args:
            ray: the module, which this one does not import.
            error: what a call came to.
        """
        cause: Cause = "crashed"
        message = "the worker process died"
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            cause, message = "oom", "the node ran out of memory and Ray ended the worker"
        elif isinstance(error, BoardLostError):
            cause, message = "node_lost", said(error)
        elif isinstance(error, BoardCrashedError):
            message = said(error)
        elif isinstance(error, ray.exceptions.RayTaskError) or self.hello is None:
            message = f"the worker failed: {_last_line(error)}"
        last_words = fault(self.log)
        return cause, f"{message}: {last_words}" if last_words else message


def said(error: Exception) -> str:
    """Give what an error of ours said in the worker, its last lines too, on one line."""
    cause = getattr(error, "cause", None)
    if not isinstance(cause, QuantBenchError):
        return _last_line(error).partition(": ")[2]
    return " | ".join(line.strip() for line in str(cause).splitlines() if line.strip())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def place_of(board: SshBoard) -> str:
    """Name a board among the nodes."""
    return f"{board.user}@{board.host}:{board.port} {board.folder}"


def code_of(hello: Hello) -> str:
    """Say which code a worker runs; one of before the check existed does not tell."""
    return getattr(hello, "code", "of an older version")
