"""How long stages take of late, and so how many of them make a call. Pure."""

import math
from collections.abc import Sequence
from typing import Final

from qb_cluster.contracts import Outcome
from qb_cluster.dispatch.job import Group, Job

CALL_S: Final = 0.25
"""How long a call of several stages is meant to take."""
MOST_TO_A_CALL: Final = 128


class Pace:
    """The seconds that a stage of each group took when one was last run."""

    def __init__(self) -> None:
        self._seconds: dict[Group, float] = {}

    def learn(self, group: Group, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        """Take what a call took that has ended, where that says something of the next ones."""
        if jobs[0].stage in {"prepare", "quality"} and jobs[0].is_patient:
            took = (outcomes[-1].finished_at - outcomes[0].started_at).total_seconds()
            self._seconds[group] = took / len(jobs)

    def size(self, group: Group, waiting: int, hands: int) -> int:
        """Say how many stages of a group make a call: few near the end, for all to have some.

        The end is that of all groups: a worker that is left without goes on with another one.

        Args:
            group: of the stages.
            waiting: how many stages wait, of all groups.
            hands: how many calls may be handed out at a time.
        """
        seconds = self._seconds.get(group)
        if seconds is None:
            return 1
        fair = math.ceil(waiting / hands)
        return max(1, min(MOST_TO_A_CALL, fair, int(CALL_S / max(seconds, 1e-6))))

    def is_brief(self, group: Group, jobs: Sequence[Job]) -> bool:
        """Tell whether a call is over in no time, so that the next may be handed out already."""
        seconds = self._seconds.get(group)
        return seconds is not None and seconds * len(jobs) <= CALL_S and jobs[0].is_patient
