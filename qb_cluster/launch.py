"""Start a sweep: its run folder, its pool of workers, the progress on the screen, Ctrl-C."""

import getpass
import os
import platform
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qb_cluster.errors import PoolError

if TYPE_CHECKING:
    from rich.console import Console

    from qb_cluster.contracts import Device
    from qb_cluster.dispatch.pool import Pool
    from qb_cluster.spec import SweepSpec
    from qb_cluster.store.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Target:
    """What runs a sweep.

    Attributes:
        pool: ``ray``, or ``inline``: this process, without Ray.
        address: of a Ray cluster, ``host:port`` or ``auto``; ``None`` starts a Ray of our own.
        allow_unauthenticated: whether the cluster may be one that asks for no token.
        ship_code: whether its nodes get QuantBench and the plug-ins of this folder.
    """

    pool: str = "ray"
    address: str | None = None
    allow_unauthenticated: bool = False
    ship_code: bool = False


def launch(
    spec: "SweepSpec",
    out: str,
    console: "Console",
    target: Target | None = None,
    rerun: Sequence[str] = (),
) -> int:
    """Run a sweep, or the rest of one.

    Args:
        spec: the sweep.
        out: its run folder, or the URL of one on an object store.
        console: what progress is shown on.
        target: what runs it; a Ray of our own unless given.
        rerun: which cells to run again though they have rows, as ``qb run --rerun`` takes them.

    Returns:
        how many of the folder's cells have failed.

    Raises:
        click.UsageError: nothing is what ``rerun`` asks for.
        KeyboardInterrupt: it was interrupted, and what has ended is kept.
        QuantBenchError: it cannot start, or cannot go on.
    """
    from qb_cluster.dispatch.sweep import Sweep
    from qb_cluster.plan import expand, expected_size
    from qb_cluster.plan.selection import FAILURES, rerun_filter, unmatched
    from qb_cluster.report.progress import RunProgress
    from qb_cluster.store.run_folder import RunFolder

    began = time.monotonic()
    planned = expected_size(spec)
    if unknown := unmatched(rerun, expand(spec)):
        raise click.UsageError("; ".join(unknown))
    with RunFolder.open(
        out,
        sweep=spec.sweep,
        spec_text=spec.text,
        spec_digest=spec.digest,
        planned_cells=planned,
    ) as folder:
        for problem in folder.problems:
            console.print(f"warning: {problem}", highlight=False, markup=False)
        with RunProgress(console, planned, folder.count) as progress:
            sweep = Sweep(
                expand(spec),
                folder,
                lambda: _pool(spec, target or Target(), folder, progress.notice),
                progress.finished,
                progress.notice,
                rerun_filter(rerun),
            )
            interrupts = _Interrupts(sweep.stop)
            sweep.run()
        statuses = Counter(folder.finished().values())
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    console.print(
        f"{sum(statuses.values())} cells in {out}: {counts or 'none has ended'} "
        f"({time.monotonic() - began:.0f} s, {sum(sweep.written.values())} of them now)"
        + (f"\nnext: qb report {out}" if statuses else ""),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if interrupts.count:
        raise KeyboardInterrupt
    return sum(statuses[status] for status in FAILURES)


class _Interrupts:
    """Ctrl-C or SIGTERM once: finish what runs. Twice: stop now."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.count = 0
        self._stop = stop
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: object) -> None:
        del number, frame
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        # Not by print: the signal may have come in the middle of one, which would be an error.
        os.write(sys.stderr.fileno(), b"finishing what runs; once more stops at once\n")
        self._stop()


def _pool(
    spec: "SweepSpec", target: Target, folder: "RunFolder", notice: Callable[[str], None]
) -> "Pool":
    from qb_cluster.dispatch.board_survey import board_runtimes, unmet_boards
    from qb_cluster.dispatch.preflight import NodeFacts, unmet
    from qb_cluster.nodes.cores import usable_cores
    from qb_cluster.nodes.environment import own_gpu
    from qb_cluster.nodes.self_description import describe_this_node, node_warnings

    cores, is_here = len(usable_cores()), target.address is None
    for warning in node_warnings() if is_here else ():
        notice(f"warning: {warning}")
    devices = [device for device in spec.devices if device.ssh is None]
    with_gpu = [device for device in devices if device.gpus]
    # Nodes make the artifacts of what is none, and of nodes with a runtime alone.
    on_nodes = [*devices, *(device.host for device in spec.devices if not device.prepares)]
    threads = [device.threads for device in on_nodes] or [1]
    is_asked = is_here and any(device.labels for device in on_nodes)  # it takes seconds at worst
    labels = describe_this_node().labels if is_asked else {}
    runtimes = board_runtimes(spec.devices, spec.backends)
    _refuse(unmet_boards(spec.devices, runtimes))
    boards = {board: first for board, (first, *_) in runtimes.items()}
    who = f"{getpass.getuser()} on {platform.node()}, sweep {spec.sweep}"
    if target.pool == "inline":
        from qb_cluster.dispatch.inline_pool import InlinePool
        from qb_cluster.worker import Owner

        gpus = 0 if own_gpu() is None else 1
        _refuse(unmet(spec.devices, [NodeFacts("this machine", cores, labels, gpus)]))
        _refuse(_mixed(on_nodes))
        owner = Owner(uuid.uuid4().hex, who)
        own = folder.artifacts, max(threads), boards, owner
        return InlinePool(*own, gpus=bool(with_gpu), labels=labels)
    from qb_cluster.dispatch.ray_pool import RayPool

    python_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    import_paths = [str(Path(p).resolve()) for p in python_path if p]
    with tempfile.TemporaryDirectory(prefix="quantbench-code-") as scratch:
        code = _code(Path(scratch), folder.place) if target.ship_code else None
        pool = RayPool(
            folder.artifacts,
            _logs(folder.place),
            threads=min(threads),
            cores=cores if is_here else None,
            # Where code is sent, the folder is a part of it.
            import_paths=import_paths if code else [str(Path.cwd()), *import_paths],
            address=target.address,
            boards=boards,
            who=who,
            gpu_workers=bool(with_gpu),
            cpu_workers=len(with_gpu) < len(devices) or bool(boards),
            code=code,
            allow_unauthenticated=target.allow_unauthenticated,
            devices=on_nodes,
            labels=labels,
        )
    try:
        _refuse(unmet(spec.devices, pool.nodes()))
    except OSError as error:
        pool.close()
        raise PoolError(f"the head of the Ray cluster does not answer: {error}") from error
    except PoolError:
        pool.close()
        raise
    return pool


def _mixed(devices: "Sequence[Device]") -> list[str]:
    """Tell that one process cannot both have a GPU and be without it."""
    with_gpu = [device.name for device in devices if device.gpus]
    without = [device.name for device in devices if not device.gpus]
    if not with_gpu or not without:
        return []
    what = f"devices '{with_gpu[0]}' and '{without[0]}': with --pool inline one process runs both"
    return [f"{what}, and each would see the GPU; leave --pool out, or make two sweeps of it"]


def _code(scratch: Path, run_folder: str) -> Path:
    """Pack the code that nodes are to run."""
    from qb_cluster.dispatch.shipped_code import pack_code
    from qb_cluster.nodes.code_version import code_version

    code_version()  # before somebody who works on the code changes it: it is remembered
    packed = scratch / "code.zip"
    pack_code(packed, Path.cwd(), None if "://" in run_folder else Path(run_folder))
    return packed


def _logs(place: str) -> Path:
    """Give the folder for what workers print: files that grow are none for an object store."""
    from qb_cluster.catalog.model_cache import folder

    return folder().absolute() / "logs" if "://" in place else Path(place) / "logs"


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise PoolError("; ".join(problems))
