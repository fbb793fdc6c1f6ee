"""Who works: nodes, their workers, and what each has in hand."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from qb_cluster.contracts import Device, SshBoard
from qb_cluster.dispatch.job import Group, Job

CALLS_IN_HAND: Final = 2


@dataclass(slots=True)
class Call:
    """Stages that were handed out together.

    Attributes:
        is_brief: whether it is over in no time, so that the next one may be handed out already.
    """

    jobs: tuple[Job, ...]
    cores: tuple[int, ...]
    is_brief: bool


@dataclass(slots=True)
class Node:
    """A machine and what its workers do with it.

    Attributes:
        free: cores that no call has.
        busy: how many workers have something in hand.
        workers: how many it has.
        with_gpu: how many of them have a GPU.
        is_taken: whether a stage runs that has it to itself.
        board: the board that it is, where it is no node of Ray.
        fingerprints: of its hardware, for workers without and with a GPU.
    """

    cores: tuple[int, ...]
    labels: Mapping[str, str]
    free: list[int] = field(default_factory=list)
    busy: int = 0
    workers: int = 0
    with_gpu: int = 0
    is_taken: bool = False
    board: SshBoard | None = None
    fingerprints: dict[int, str] = field(default_factory=dict)

    def serves(self, device: Device) -> bool:
        """Tell whether it is what a device asks for, and has a worker for it."""
        workers = self.with_gpu if device.gpus else self.workers - self.with_gpu
        return (
            self.board == device.ssh
            and workers > 0
            and len(self.cores) >= device.threads
            and all(self.labels.get(label) == value for label, value in device.labels)
        )


@dataclass(slots=True)
class Worker:
    """A process that runs calls, one after the other.

    Attributes:
        gpus: 1 when it has a GPU to itself.
        group: of what it ran last: what it has loaded.
        calls: what it has in hand.
    """

    name: str
    node: Node
    gpus: int = 0
    group: Group | None = None
    calls: deque[Call] = field(default_factory=deque)

    def serves(self, device: Device) -> bool:
        """Tell whether it is what a device asks for: on a GPU, or without any."""
        return self.gpus == device.gpus and self.node.serves(device)

    @property
    def is_eager(self) -> bool:
        """Whether it could take another call: it has none, or one that is over in no time."""
        return not self.calls or (len(self.calls) < CALLS_IN_HAND and self.calls[-1].is_brief)
