"""The command line: thin. Each command imports what it needs when it is called."""

import itertools
import json
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from qb_cluster.errors import PoolError, QuantBenchError
from qb_cluster.exit_codes import ExitCode

if TYPE_CHECKING:
    from qb_cluster.contracts import Cell
    from qb_cluster.dispatch.preflight import NodeFacts

_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_ALLOW_UNAUTHENTICATED = click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Use a cluster that asks for no token, although others can reach it and run code on it.",
)


class _NobodyReadsError(Exception):
    """The reader of stdout, `head` perhaps, has seen enough."""


class _Commands(click.Group):
    """Click itself would exit with 1 when a pipe breaks."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _NobodyReadsError from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 cannot run, 3 some cells or checks failed, 130 interrupted.",
)
@click.version_option(package_name="qb-cluster", prog_name="qb")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(*, debug: bool) -> None:
    """Run sweeps that measure what quantization does to a model."""
    del debug  # read by main


@cli.command()
@_SPEC
@click.option("--json", "as_json", is_flag=True, help="Cells alone, one JSON object per line.")
@click.option("--no-data", is_flag=True, help="Load no dataset: do not say what n can show.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of earlier runs, which tell how many examples flip.",
)
def plan(spec: Path, runs: Path, *, as_json: bool, no_data: bool) -> None:
    """Show the cells of a sweep: native, simulated or unsupported, and what n can show."""
    from qb_cluster.plan import check_size, expand, plan_json_lines, plan_lines
    from qb_cluster.spec import load_spec

    loaded = load_spec(spec)
    check_size(loaded)
    judged = 0

    def counted() -> "Iterator[Cell]":
        nonlocal judged
        for cell in expand(loaded):
            judged += not cell.is_baseline and cell.execution is not None
            yield cell

    _print_lines((plan_json_lines if as_json else plan_lines)(counted()))
    if not as_json and not no_data:
        from qb_cluster.report.power import discordance_seen, power_lines, size_of

        datasets = {ref.label: ref for product in loaded.products for ref in product.dataset}
        at_most = loaded.measure.examples
        sizes = {label: size_of(ref, at_most) for label, ref in datasets.items()}
        _print_lines(("", *power_lines(loaded, judged, sizes, discordance_seen(runs))))


@cli.command()
@_SPEC
@click.option("--out", help="Run folder, or s3://bucket/prefix.  [default: runs/<sweep>]")
@click.option(
    "--pool",
    type=click.Choice(["ray", "inline"]),
    default="ray",
    show_default=True,
    help="ray: worker processes under Ray; inline: everything in this process, without Ray.",
)
@click.option(
    "--address", help="Ray cluster to run on, HOST:PORT or auto; otherwise starts a local Ray."
)
@_ALLOW_UNAUTHENTICATED
@click.option(
    "--ship-code",
    is_flag=True,
    help="Send QuantBench and the plug-ins in this folder to the nodes of --address.",
)
@click.option(
    "--rerun",
    multiple=True,
    metavar="WHICH",
    help="Rerun cells that have results: failed, another status, a cell id, or a glob such as "
    "'cnn/*/tflite/*'. May be repeated.",
)
def run(
    spec: Path,
    out: str | None,
    pool: str,
    address: str | None,
    rerun: tuple[str, ...],
    *,
    allow_unauthenticated: bool,
    ship_code: bool,
) -> None:
    """Run a sweep, or resume one that was interrupted.

    Progress and messages go to stderr.
    """
    from qb_cluster.report.progress import RunProgress
    from qb_cluster.terminal import messages

    if address is not None and pool == "inline":
        raise click.UsageError("--pool inline runs in this process; leave --address out")
    if ship_code and address is None:
        raise click.UsageError("--ship-code sends to the nodes of a cluster; give its --address")
    # What plug-ins print in this process is no data of ours.
    with redirect_stdout(sys.stderr), RunProgress(messages()) as progress:
        progress.phase("reading the spec")
        from qb_cluster.launch import Target, launch
        from qb_cluster.plan import check_size
        from qb_cluster.spec import load_spec

        loaded = load_spec(spec)
        check_size(loaded)
        place = out or str(Path("runs") / loaded.sweep)
        target = Target(pool, address, allow_unauthenticated, ship_code)
        failed = launch(loaded, place, progress, target, rerun)
    if failed:
        sys.exit(ExitCode.SOME_FAILED)


@cli.command()
@click.argument("folder")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(folder: str, *, as_json: bool) -> None:
    """Show the progress of a run, failures and causes, and how much work was reused."""
    from qb_cluster.report.run_status import read_status
    from qb_cluster.report.status import to_json, to_terminal
    from qb_cluster.terminal import output

    found = read_status(folder)
    if as_json:
        click.echo(to_json(found))
    else:
        to_terminal(found, output())


@cli.command()
@click.argument("folder")
@click.option(
    "--full", is_flag=True, help="Everything: all rows, grids, agreement, reasons, notes."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "md", "csv", "json"]),
    default="table",
    show_default=True,
    help="What is printed; the files are written in any case.",
)
@click.option("--where", metavar="SQL", help="Only these rows: \"backend = 'tflite'\".")
@click.option("--sort", metavar="COLUMNS", help="Sort by columns: speedup,-delta (- descends).")
@click.option("--columns", metavar="COLUMNS", help="Print these columns: model,bits,delta.")
@click.option("--tolerance", help="Judge by this loss: '1 pt', '0.5 %'. [default: the sweep's]")
@click.option(
    "--adjust",
    type=click.Choice(["holm", "none"]),
    help="Adjust verdicts for the number of cells, or not. [default: the sweep's]",
)
def report(
    folder: str,
    form: str,
    where: str | None,
    sort: str | None,
    columns: str | None,
    tolerance: str | None,
    adjust: str | None,
    *,
    full: bool,
) -> None:
    """Answer what may ship: write the report as Markdown, CSV and Parquet, then print it."""
    from qb_cluster.contracts.tolerance import Tolerance
    from qb_cluster.report import Wish, show_report
    from qb_cluster.terminal import output

    try:
        accepted = None if tolerance is None else Tolerance.parse(tolerance)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tolerance") from error
    wish = Wish(form, full, where, sort, columns, accepted, adjust)  # type: ignore[arg-type]
    show_report(folder, output(), lambda text: click.echo(text, err=True), wish)


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--check", is_flag=True, help="Run every native entry on digits (takes minutes).")
def backends(names: tuple[str, ...], *, as_json: bool, check: bool) -> None:
    """Show what every backend (or those in NAMES) supports: scheme × bits, and why not.

    With NAMES it also shows what becomes of each kind of layer.
    """
    from qb_cluster.catalog.plugins import registered
    from qb_cluster.plan.handled_kinds import handled_kinds_table
    from qb_cluster.plan.support_matrix import support_json_lines, support_matrix, support_table
    from qb_cluster.terminal import output

    entries = list(support_matrix(names or sorted(registered("backend"))))
    if as_json:
        _print_lines(support_json_lines(entries))
    else:
        output().print(support_table(entries))
        for table in filter(None, map(handled_kinds_table, names)):
            output().print()
            output().print(table)
    if check:
        from qb_cluster.claim_check import check_claims

        if not check_claims(entries):
            sys.exit(ExitCode.SOME_FAILED)


@cli.command()
@click.argument("names", nargs=-1)
def selfcheck(names: tuple[str, ...]) -> None:
    """Check quantizers, observers, metrics and the kernels of backends against known laws."""
    from qb_cluster.selfcheck import print_checks, run_selfcheck
    from qb_cluster.terminal import output

    if not print_checks(run_selfcheck(names or None), output()):
        sys.exit(ExitCode.SOME_FAILED)


@cli.command()
@click.argument("folder")
@click.option("--model", required=True, help="Label of the model.")
@click.option("--scheme", default="weight_only", show_default=True, help="Label of the scheme.")
@click.option("--bits", type=float, help="Bits per weight at most, scales and floats counted.")
@click.option("--sqnr", type=float, help="SQNR of the outputs in dB at least.")
@click.option("--backend", help="Who will run it. [default: the backend that measured]")
def propose(
    folder: str,
    model: str,
    scheme: str,
    bits: float | None,
    sqnr: float | None,
    backend: str | None,
) -> None:
    """Propose a mixed-precision scheme from the layers that a run has measured.

    The run must hold simulated cells of one scheme over several bit-widths, with
    `measure: {layers: true}`. What is printed goes into `schemes` of the next sweep. Proposed are
    widths that the backend runs natively; bits per weight are those of the artifact it will make.
    """
    from qb_cluster.report.run_proposal import propose_from_run

    click.echo(propose_from_run(folder, model, scheme, bits, sqnr, backend), nl=False)


@cli.command()
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object with everything that was found."
)
def node(*, as_json: bool) -> None:
    """Print this machine's labels and locks: node=$(qb node) && ray start --address=... $node."""
    from qb_cluster.nodes.self_description import describe_this_node

    found = describe_this_node()
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(json.dumps(found.as_json()) if as_json else " ".join(found.ray_arguments()))


@cli.command()
@click.option("--address", help="Ray cluster, HOST:PORT or auto; otherwise this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with all labels.")
@_ALLOW_UNAUTHENTICATED
def devices(address: str | None, *, as_json: bool, allow_unauthenticated: bool) -> None:
    """Show the nodes of a cluster, and how a spec names them as devices."""
    from qb_cluster.dispatch import device_list

    nodes = _nodes(address, allow_unauthenticated=allow_unauthenticated)
    if as_json:
        _print_lines(json.dumps(node) for node in device_list.as_json(nodes))
    else:
        click.echo(f"{device_list.as_table(nodes)}\n\n{device_list.as_spec(nodes)}")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of sweep specs, for editors."""
    from qb_cluster.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def main() -> NoReturn:
    """Run the command line and exit as ``docs/exit-codes.md`` says."""
    from qb_cluster.terminal import forget, prepare_streams

    prepare_streams()
    try:
        _look_up_plug_ins_here()
        cli.main(prog_name="qb", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.CANNOT_RUN)
    except QuantBenchError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        resume = " Run the same command again to resume." if "run" in sys.argv else ""
        click.echo(f"Stopped.{resume}", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except (_NobodyReadsError, BrokenPipeError):
        forget(sys.stdout)
    sys.exit(ExitCode.DONE)


def _look_up_plug_ins_here() -> None:
    """Have plug-ins found in the folder where qb runs."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise QuantBenchError(
            "the current folder does not exist any more; change to one that does"
        ) from error
    if here not in sys.path:
        sys.path.insert(0, here)


def _print_lines(lines: Iterable[str]) -> None:
    """Print the first lines at once and the rest in blocks: a plan may have millions."""
    lines = iter(lines)
    size = 1
    while block := list(itertools.islice(lines, size)):
        sys.stdout.write("\n".join(block) + "\n")
        sys.stdout.flush()
        size = min(2 * size, 1_000)


def _nodes(address: str | None, *, allow_unauthenticated: bool) -> "list[NodeFacts]":
    """Ask a cluster for its nodes, or this machine for itself."""
    from qb_cluster.dispatch.preflight import NodeFacts

    if address is None:
        from qb_cluster.nodes.self_description import describe_this_node

        own = describe_this_node()
        return [NodeFacts(own.machine["host"], own.cores, own.labels, len(own.gpus))]
    from qb_cluster.dispatch.ray_cluster import RayCluster

    cluster = RayCluster(address, None, allow_unauthenticated=allow_unauthenticated)
    try:
        found = cluster.nodes().values()
    except OSError as error:
        raise PoolError(f"the head of the Ray cluster does not answer: {error}") from error
    finally:
        cluster.close()
    return [NodeFacts(node.host, node.cores, node.labels, node.gpus) for node in found]
