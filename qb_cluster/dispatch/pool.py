"""The contract between the driver and whatever runs its workers."""

from typing import Final, Protocol

from qb_cluster.contracts import Task
from qb_cluster.dispatch.events import Event

ASK_AGAIN_S: Final = 2.0
"""How often somebody is asked again who has a board, or did not answer."""


class Pool(Protocol):
    """Workers that come and go. Used from one thread."""

    @property
    def can_kill(self) -> bool:
        """Whether it can end a stage that runs, so that deadlines have a sense."""

    def start(self, worker: str, tasks: tuple[Task, ...]) -> None:
        """Hand a call to a worker, which takes it up after those it has."""

    def kill(self, worker: str) -> None:
        """End a worker and bring up another in its place (its ``WorkerUp`` follows)."""

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Wait for events; those of one worker come in the order in which they happened.

        Args:
            timeout_s: seconds after which an empty list comes back; ``None`` waits on.

        Raises:
            PoolError: there are no workers, and none will come.
        """

    def close(self) -> None:
        """End every worker."""
