"""Start a sweep: its run folder, its pool of workers, its progress, Ctrl-C."""

import getpass
import os
import platform
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from qb_cluster.errors import NothingRunsError, PoolError

if TYPE_CHECKING:
    from qb_cluster.contracts import Device
    from qb_cluster.dispatch.pool import Pool
    from qb_cluster.report.progress import RunProgress
    from qb_cluster.spec import SweepSpec
    from qb_cluster.store.run_folder import RunFolder

_MOST_REASONS: Final = 8
_FINISHING: Final = b"Finishing running cells; press Ctrl-C again to abort.\n"


@dataclass(frozen=True, slots=True)
class Target:
    """What runs a sweep.

    Attributes:
        pool: ``ray``, or ``inline``: this process, without Ray.
        address: of a Ray cluster, ``host:port`` or ``auto``; ``None`` starts a local Ray.
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
    progress: "RunProgress",
    target: Target | None = None,
    rerun: Sequence[str] = (),
    *,
    is_kept: bool = True,
) -> int:
    """Run a sweep, or resume one.

    Args:
        spec: the sweep.
        out: its run folder, or the URL of one on an object store.
        progress: shows what is going on, and how it ended; it has been entered.
        target: what runs it; a local Ray unless given.
        rerun: which cells to run again though they have rows, as ``qb run --rerun`` takes them.
        is_kept: whether ``out`` stays for the user.

    Returns:
        how many of the plan's cells have failed.

    Raises:
        click.UsageError: nothing is what ``rerun`` asks for.
        KeyboardInterrupt: it was interrupted, and what has ended is kept.
        NothingRunsError: no cell of the plan can run here.
        QuantBenchError: it cannot start, or cannot go on.
    """
    from qb_cluster.dispatch.sweep import Sweep
    from qb_cluster.plan import expand, expected_size
    from qb_cluster.plan.selection import FAILURES, rerun_filter, unmatched
    from qb_cluster.report.closing import Closing
    from qb_cluster.store.run_folder import RunFolder

    target = target or Target()
    planned = expected_size(spec)
    if unknown := unmatched(rerun, expand(spec)):
        raise click.UsageError("; ".join(unknown))
    if planned:
        _refuse_what_cannot_run(spec, target)
    progress.phase(f"opening {out}")
    with RunFolder.open(
        out,
        sweep=spec.sweep,
        spec_text=spec.text,
        spec_digest=spec.digest,
        planned_cells=planned,
        judgement=spec.judgement.as_json(),
    ) as folder:
        for problem in folder.problems:
            progress.warn(problem)
        folder.count_only(cell.cell_id for cell in expand(spec))
        progress.begin(planned, folder.count)
        sweep = Sweep(
            expand(spec),
            folder,
            lambda: _pool(spec, target, folder, progress),
            progress.finished,
            progress.notice,
            rerun_filter(rerun),
            progress.phase,
        )
        interrupts = _Interrupts(sweep.stop)
        sweep.run()
        statuses = folder.finished()
    took_s = time.monotonic() - progress.began
    written = sum(sweep.written.values())
    progress.end(Closing(out, statuses, planned, written, took_s, is_kept).lines())
    if interrupts.count:
        raise KeyboardInterrupt
    return sum(status in FAILURES for status in statuses.values())


def _refuse_what_cannot_run(spec: "SweepSpec", target: Target) -> None:
    """Refuse a plan of which no cell can run, before there is a folder or a Ray for it.

    What is missing here may be there where the cells would run, on a cluster or a board. A folder
    of earlier runs stays as it is: it would only get rows of cells that nobody could run.

    Raises:
        NothingRunsError: no cell can run.
    """
    from qb_cluster.installation import install_lines
    from qb_cluster.plan import expand
    from qb_cluster.plan.selection import cell_name
    from qb_cluster.report.reasons import grouped, reason_lines
    from qb_cluster.spec import extra_of, not_installed

    if any(cell.execution is not None for cell in expand(spec)):
        return
    missing = [backend for backend in spec.backends if not_installed(backend) is not None]
    is_elsewhere = target.address is not None or not all(device.prepares for device in spec.devices)
    if missing and is_elsewhere:
        return
    reasons = grouped(("unsupported", cell.reason, cell_name(cell)) for cell in expand(spec))
    why = reason_lines(reasons, _MOST_REASONS, f"qb plan {spec.source}")
    extras = [extra for backend in missing if (extra := extra_of(backend))]
    install = [f"to install what is missing: {line}" for line in install_lines(extras)]
    raise NothingRunsError(
        "\n".join([f"no cell of sweep '{spec.sweep}' can run here:", *why, *install])
    )


class _Interrupts:
    """Ctrl-C or SIGTERM once: finish running cells. Twice: stop now."""

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
        with suppress(OSError):  # nobody listens any more
            os.write(sys.stderr.fileno(), _FINISHING)
        self._stop()


def _pool(
    spec: "SweepSpec", target: Target, folder: "RunFolder", progress: "RunProgress"
) -> "Pool":
    from qb_cluster.dispatch.board_survey import board_runtimes, unmet_boards
    from qb_cluster.dispatch.preflight import NodeFacts, unmet
    from qb_cluster.nodes.cores import usable_cores
    from qb_cluster.nodes.environment import own_gpu
    from qb_cluster.nodes.self_description import describe_this_node, node_warnings

    cores, is_here = len(usable_cores()), target.address is None
    for warning in node_warnings() if is_here else ():
        progress.warn(warning)
    devices = [device for device in spec.devices if device.ssh is None]
    with_gpu = [device for device in devices if device.gpus]
    # Nodes make the artifacts of what is none, and of nodes with a runtime alone.
    on_nodes = [*devices, *(device.host for device in spec.devices if not device.prepares)]
    threads = [device.threads for device in on_nodes] or [1]
    is_asked = is_here and any(device.labels for device in on_nodes)  # it takes seconds at worst
    labels = describe_this_node().labels if is_asked else {}
    if len(devices) < len(spec.devices):
        progress.phase("asking boards")
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
    cluster = f"the Ray cluster at {target.address}"
    progress.phase("starting Ray" if is_here else f"connecting to {cluster}")
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
    progress.phase("starting workers")
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
