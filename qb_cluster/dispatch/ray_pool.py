"""Workers as Ray actors, a share of the cores of every node each.

A deadline ends in ``ray.kill``, since Ray cannot stop a running actor call in any other way.
"""

import logging
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from qb_cluster.contracts import Device, SshBoard, Task
from qb_cluster.dispatch.board_survey import waiting_for
from qb_cluster.dispatch.events import (
    BoardGivenUp,
    Cause,
    Event,
    TasksEnded,
    Waiting,
    WorkerLost,
    WorkerUp,
)
from qb_cluster.dispatch.last_words import Whereabouts, tell
from qb_cluster.dispatch.node_locks import NodeLocks
from qb_cluster.dispatch.packing import pack, unpack
from qb_cluster.dispatch.preflight import NodeFacts
from qb_cluster.dispatch.ray_cluster import Node, RayCluster
from qb_cluster.dispatch.ray_worker import RayWorker, code_of, place_of, said
from qb_cluster.dispatch.worker_process import Hello, MakeRunner, WorkerProcess
from qb_cluster.errors import BoardError, BoardLostError, BoardUnreachableError, PoolError
from qb_cluster.nodes.code_version import code_version
from qb_cluster.worker import Owner, Worker

LOOK_EVERY_S = 2.0
HEAD_SILENT_S = 20.0  # Ray itself ends a driver whose head is silent for 60 s
MOST_FAILED_STARTS = 3
TIDY_S = 2.0

_LOG = logging.getLogger(__name__)


class RayPool:
    """One worker for each ``threads`` cores of every node, as nodes come and go.

    Args:
        artifacts: where artifacts are kept: a folder, or the URL of an object store.
        logs: folder for what workers print, on the machine that each of them runs on.
        threads: the smallest number of threads a cell asks for.
        cores: the most cores to use on a node; ``None`` is all.
        import_paths: folders that workers look up plug-ins in, as the driver does.
        address: of a Ray cluster that exists, ``host:port`` or ``auto``; ``None`` starts a Ray of
            our own on this machine.
        make_runner: what workers run stages with.
        patience_s: how long no worker at all may be up before it is an error.
        boards: boards to use, with the module that each starts with. Their workers are on this
            machine, whose keys and known hosts are the user's.
        who: who uses them, for others to read.
        gpu_workers: whether each GPU gets a worker, and its share of its node's cores.
        cpu_workers: whether the other cores get workers, which see no GPU.
        code: what workers import and are started in, see ``RayCluster``.
        allow_unauthenticated: see ``RayCluster``.
        devices: what nodes have to be to be used; none takes all.
        labels: what this machine is, for a Ray of our own.

    Raises:
        PoolError: Ray does not start, or the cluster cannot be reached or is refused.
    """

    can_kill = True

    def __init__(
        self,
        artifacts: str,
        logs: Path,
        *,
        threads: int,
        cores: int | None = None,
        import_paths: Sequence[str] = (),
        address: str | None = None,
        make_runner: MakeRunner = Worker,
        patience_s: float = 120.0,
        boards: Mapping[SshBoard, str] | None = None,
        who: str = "",
        gpu_workers: bool = False,
        cpu_workers: bool = True,
        code: Path | None = None,
        allow_unauthenticated: bool = False,
        devices: Sequence[Device] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._cluster = RayCluster(
            address,
            cores,
            code=code,
            allow_unauthenticated=allow_unauthenticated,
            labels=labels,
        )
        import ray

        self._ray: Any = ray
        self._locks = NodeLocks(self._cluster, ray)
        self._logs = logs
        self._threads = threads
        self._artifacts = artifacts
        self._make_runner = make_runner
        self._boards = dict(boards or {})
        self._kinds = {"on_gpus": gpu_workers, "on_cpus": cpu_workers}
        self._devices = devices
        self._owner = Owner(uuid.uuid4().hex, who)
        self._import_paths = list(import_paths)
        self._patience_s = patience_s
        self._actors: dict[str, RayWorker] = {}
        self._nodes: Mapping[str, Node] = {}
        self._started = 0
        self._failed_starts: Counter[str] = Counter()  # by node, since the last that succeeded
        self._given_up: dict[str, str] = {}  # nodes where workers do not start, and why
        now = time.monotonic()
        self._look_at = now  # when nodes are looked at next
        self._head_heard = now
        self._last_up = now  # when a worker was last known to be up, or others to have a node

    def start(self, worker: str, tasks: tuple[Task, ...]) -> None:
        """Hand a call to a worker, which takes it up after those it has."""
        if actor := self._actors.get(worker):  # else it is lost, and wait() says so next
            actor.calls.append(actor.handle.run.remote(pack(tasks)))

    def kill(self, worker: str) -> None:
        """End a worker, its children with it; another comes up in its place."""
        if actor := self._actors.pop(worker, None):
            self._ray.kill(actor.handle)
            self._look_at = 0.0

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Wait for workers that are ready, done or dead.

        Raises:
            PoolError: there are no workers, and none will come.
        """
        until = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._sleep(min(self._look_at, until) - time.monotonic())
            events, dead = self._collect()
            if dead or time.monotonic() >= self._look_at:
                try:
                    events += self._look(dead)
                except PoolError:
                    if not events:
                        raise
                    self._look_at = 0.0  # what has ended counts; the next call raises again
            if events or time.monotonic() >= until:
                return events

    def nodes(self) -> list[NodeFacts]:
        """Say what the nodes are, for a look before anything starts.

        Raises:
            PoolError: Ray has ended on this machine.
            OSError: the head does not answer.
        """
        nodes = self._cluster.nodes().values()
        return [NodeFacts(node.host, node.cores, node.labels, node.gpus) for node in nodes]

    def close(self) -> None:
        """End every worker, and the Ray that was started for them."""
        with suppress(Exception):  # whatever is broken here, the rest is to end
            idle = [a.handle for a in self._actors.values() if a.hello and not a.calls]
            tidying = [handle.tidy.remote() for handle in idle]
            if tidying:
                self._ray.wait(tidying, num_returns=len(tidying), timeout=TIDY_S)
            for actor in self._actors.values():
                self._ray.kill(actor.handle)
            self._locks.release()
        self._actors.clear()
        self._cluster.close()

    # Calls

    def _sleep(self, seconds: float) -> None:
        """Wait until a call ends."""
        heads = [actor.calls[0] for actor in self._actors.values() if actor.calls]
        if heads:
            self._ray.wait(heads, timeout=max(0.0, seconds))
        else:
            time.sleep(max(0.0, seconds))

    def _collect(self) -> tuple[list[Event], dict[str, Exception]]:
        """Take everything that is ready; a worker's calls are looked at in their order only."""
        events: list[Event] = []
        dead: dict[str, Exception] = {}
        look_at: Iterable[str] = self._actors
        while heads := {
            self._actors[name].calls[0]: name for name in look_at if self._actors[name].calls
        }:
            ready, _ = self._ray.wait(list(heads), num_returns=len(heads), timeout=0)
            look_at = []
            for call in ready:
                worker = heads[call]
                answer = self._actors[worker].answer(self._ray, call)
                if isinstance(answer, Exception):
                    dead[worker] = answer
                elif isinstance(answer, Hello) and (code := code_of(answer)) != code_version():
                    events += self._refuse_code(worker, code)
                elif isinstance(answer, Hello) and answer.waits_for is not None:
                    events.append(self._ask_again(worker, answer.waits_for))
                elif answer is not None:
                    self._actors[worker].calls.popleft()
                    events.append(self._heard(worker, answer))
                    look_at.append(worker)
        return events, dead

    def _heard(self, worker: str, answer: bytes | Hello) -> Event:
        if isinstance(answer, bytes):
            return TasksEnded(worker, unpack(answer))
        actor = self._actors[worker]
        node, actor.hello, actor.log = actor.node, answer, answer.log
        self._failed_starts[actor.place] = 0
        if actor.board is not None:
            here = actor.place, answer.cores
            return WorkerUp(worker, *here, fingerprint=answer.fingerprint, board=actor.board)
        cores = answer.cores[: node.cores]
        hardware = node.labels, answer.fingerprint
        return WorkerUp(worker, node.node_id, cores, *hardware, gpus=actor.gpus)

    def _ask_again(self, worker: str, holder: str) -> Event:
        """Others have a worker's board."""
        actor = self._actors[worker]
        assert actor.board is not None
        actor.calls = deque([actor.handle.hello.remote()])
        return waiting_for(actor.board, holder)

    # Nodes

    def _look(self, dead: Mapping[str, Exception]) -> list[Event]:
        """See which nodes there are, say what that means for workers, and start what is missing."""
        now = time.monotonic()
        self._look_at = now + LOOK_EVERY_S
        try:
            self._nodes = self._cluster.nodes()
            self._head_heard = now
        except OSError as error:
            if now - self._head_heard > HEAD_SILENT_S:
                raise PoolError(
                    f"the head of the Ray cluster is gone ({error}); finished cells are kept: "
                    "start the cluster and run the same command again"
                ) from error
            return [event for worker in dead for event in self._died(worker, dead[worker])]
        events = [event for worker in dead for event in self._died(worker, dead[worker])]
        events += self._lose_nodes()
        events += self._take_locks(now)
        self._fill()
        if not events:
            self._despair(now)
        return events

    def _lose_nodes(self) -> list[Event]:
        lost = [name for name, a in self._actors.items() if a.node.node_id not in self._nodes]
        if not lost:
            return []
        events, _ = self._collect()  # what came back meanwhile counts
        for worker in lost:
            if worker not in self._actors:
                continue  # it came back as one of other code, and was let go
            host = self._actors[worker].node.host
            events += self._lose(worker, "node_lost", f"the node on host '{host}' is gone")
        return events

    def _take_locks(self, now: float) -> list[Event]:
        """Ask for the locks of nodes that the sweep can use, and end workers where one is lost."""
        wanted = {name: node for name, node in self._nodes.items() if node.can_be(self._devices)}
        on_nodes = [actor for actor in self._actors.values() if actor.board is None]
        self._locks.give_back_idle(wanted, {a.node.node_id for a in on_nodes if a.calls}, now)
        taken = self._locks.take(wanted, now)
        if taken.waiting:  # patience with workers begins when others are done
            self._last_up = now
        for name, reason in self._locks.failed.items():
            if name not in self._given_up:
                self._given_up[name] = f"on host '{self._nodes[name].host}': {reason}"
                _LOG.warning("workers do not come up %s; none are started", self._given_up[name])
        events: list[Event] = [*taken.waiting]
        for worker, actor in list(self._actors.items()):
            if actor.board is None and actor.node.node_id in taken.lost:
                message = f"the lock of host '{actor.node.host}' is gone"
                events += self._lose(worker, "node_lost", message)
        return events

    def _fill(self) -> None:
        workers = Counter((actor.place, actor.gpus) for actor in self._actors.values())
        for node in self._nodes.values():
            is_ours = node.can_be(self._devices) and self._locks.is_ours(node)
            if is_ours and node.node_id not in self._given_up:
                room = node.workers(self._threads, **self._kinds)
                for gpus, wanted in zip((1, 0), room, strict=True):
                    for _ in range(wanted - workers[node.node_id, gpus]):
                        self._spawn(node, gpus=gpus)
        for board in self._boards:
            if not workers[place_of(board), 0] and place_of(board) not in self._given_up:
                self._spawn(self._nodes[self._cluster.own_node], board)

    def _spawn(self, node: Node, board: SshBoard | None = None, gpus: int = 0) -> None:
        self._started += 1
        worker = f"worker-{self._started}"
        log = self._logs / f"{worker}.{os.getpid()}.log"
        # A board's takes none to speak of here; a GPU's gets its share from the scheduler.
        cores = 0 if board or gpus else self._threads
        make = partial(Worker, board=board, owner=self._owner) if board else self._make_runner
        # The agent with the user's keys: Ray may be of another session than ours.
        keys = os.environ.get("SSH_AUTH_SOCK") if board else None
        variables = {"SSH_AUTH_SOCK": keys} if keys else {}
        packed, runtime = pack([make]), self._boards[board] if board else ""
        arguments = (packed, self._artifacts, str(log), self._import_paths, runtime, gpus)
        shares = self._threads, cores, gpus
        handle = self._cluster.start_actor(
            WorkerProcess, arguments, node, *shares, variables=variables
        )
        calls = deque([handle.hello.remote()])
        self._actors[worker] = RayWorker(node, handle, log, calls, board=board, gpus=gpus)

    def _despair(self, now: float) -> None:
        if any(actor.hello for actor in self._actors.values()):
            self._last_up = now
        elif not self._actors and self._given_up.keys() & self._nodes.keys():
            raise PoolError(f"workers do not come up {'; '.join(self._given_up.values())}")
        elif now - self._last_up > self._patience_s or (self._cluster.is_own and not self._actors):
            raise PoolError(self._why_none())

    def _why_none(self) -> str:
        waited = f"within {self._patience_s:g} s"
        if not self._actors:
            nodes = ", ".join(f"{n.host}: {n.cores}" for n in self._nodes.values())
            return (
                f"no node with {self._threads} cores came {waited} (there are, with their cores: "
                f"{nodes}); start one with `ray start --address=…`, or lower devices: threads"
            )
        return (
            f"no worker came up {waited}: its cores may be taken by other work in the Ray "
            f"cluster, or its environment is broken; see {self._logs}"
        )

    # Deaths

    def _died(self, worker: str, error: Exception) -> list[Event]:
        """A call came back with an error of Ray's."""
        actor = self._actors[worker]
        if actor.node.node_id not in self._nodes:
            return []  # its whole node is lost
        cause, message = actor.why(self._ray, error)
        lost = self._lose(worker, cause, message)
        if actor.hello is None:
            return self._failed_to_start(actor, message, error)
        return lost

    def _lose(self, worker: str, cause: Cause, message: str) -> list[Event]:
        actor = self._actors.pop(worker)
        with suppress(Exception):  # it may live on when only the call failed
            self._ray.kill(actor.handle)
        if actor.hello is None:
            return []  # nobody was told of it
        hello, node = actor.hello, actor.node
        where = Whereabouts(worker, hello.host, node.node_id, hello.pid, actor.log)
        return [WorkerLost(worker, cause, message, tell(where, message))]

    def _refuse_code(self, worker: str, code: str) -> list[Event]:
        """Let a worker of other code go: rows of one run would come from two programs."""
        actor = self._actors.pop(worker)
        with suppress(Exception):
            self._ray.kill(actor.handle)
        return self._give_up(
            actor,
            f"on host '{actor.node.host}': it runs qb-cluster {code}, and this driver "
            f"{code_version()}; install the same on both, or send this driver's with --ship-code",
        )

    def _failed_to_start(self, actor: RayWorker, message: str, error: Exception) -> list[Event]:
        """Start no more where that has no prospect; a board that was there once may come back."""
        if actor.board is not None:
            reason = said(error)
            if isinstance(error, BoardLostError | BoardUnreachableError):
                return [Waiting(f"{reason}; trying again")]
            if isinstance(error, BoardError):
                return self._give_up(actor, reason)
        self._failed_starts[actor.place] += 1
        if self._failed_starts[actor.place] < MOST_FAILED_STARTS:
            return []
        return self._give_up(actor, f"on host '{actor.node.host}': {message} (log: {actor.log})")

    def _give_up(self, actor: RayWorker, reason: str) -> list[Event]:
        if actor.place in self._given_up:
            return []
        if actor.board is not None:
            self._given_up[actor.place] = ""
            return [BoardGivenUp(actor.board, reason)]
        self._given_up[actor.place] = reason
        if self._actors:
            _LOG.warning("workers do not come up %s; none are started there", reason)
        return []
