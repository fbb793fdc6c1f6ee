"""The command line: thin. Each command imports what it needs when it is called."""

import itertools
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from qb_cluster.errors import PoolError, QuantBenchError

if TYPE_CHECKING:
    from qb_cluster.dispatch.preflight import NodeFacts
    from qb_cluster.plan.support_matrix import Entry

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_ALLOW_UNAUTHENTICATED = click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Use a cluster that asks for no token, though others can reach it and run code on it.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qb-cluster", prog_name="qb")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(*, debug: bool) -> None:
    """Sweeps that measure what quantization does to a model."""
    del debug  # read by main


@cli.command()
@_SPEC
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def plan(spec: Path, *, as_json: bool) -> None:
    """Show the cells of a sweep, and what is native, simulated or unsupported, and why."""
    from qb_cluster.plan import check_size, expand, plan_json_lines, plan_lines
    from qb_cluster.spec import load_spec

    loaded = load_spec(spec)
    check_size(loaded)
    _print_lines((plan_json_lines if as_json else plan_lines)(expand(loaded)))


@cli.command()
@_SPEC
@click.option("--out", help="Run folder, or s3://bucket/prefix; runs/<sweep> unless given.")
@click.option(
    "--pool",
    type=click.Choice(["ray", "inline"]),
    default="ray",
    show_default=True,
    help="ray: actors of Ray; inline: all in this process, without Ray.",
)
@click.option("--address", help="Ray cluster to run on, HOST:PORT or auto; a Ray of our own else.")
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
    help="Also run again: failed, another status, a cell id, or a glob such as 'cnn/*/tflite/*'.",
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
    """Run a sweep, or the rest of one that was interrupted."""
    from rich.console import Console

    from qb_cluster.launch import Target, launch
    from qb_cluster.plan import check_size
    from qb_cluster.spec import load_spec

    if address is not None and pool == "inline":
        raise click.UsageError("--pool inline runs here and now; leave --address out")
    if ship_code and address is None:
        raise click.UsageError("--ship-code sends to the nodes of a cluster; give its --address")
    loaded = load_spec(spec)
    check_size(loaded)
    place = out or str(Path("runs") / loaded.sweep)
    target = Target(pool, address, allow_unauthenticated, ship_code)
    if launch(loaded, place, Console(stderr=False), target, rerun):
        sys.exit(EXIT_SOME_FAILED)


@cli.command()
@click.argument("folder")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(folder: str, *, as_json: bool) -> None:
    """Show how far a run is, what failed and why, and how much work was shared."""
    from rich.console import Console

    from qb_cluster.report.run_status import read_status
    from qb_cluster.report.status import to_json, to_terminal

    found = read_status(folder)
    if as_json:
        click.echo(to_json(found))
    else:
        to_terminal(found, Console())


@cli.command()
@click.argument("folder")
def report(folder: str) -> None:
    """Print the comparison of a run and write it as Markdown, CSV and Parquet."""
    from rich.console import Console

    from qb_cluster.report import write_report

    console = Console()
    written = write_report(folder, console)
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--check", is_flag=True, help="Run every native entry on digits; minutes.")
def backends(names: tuple[str, ...], *, as_json: bool, check: bool) -> None:
    """Show what every backend (or the NAMES given) can do: scheme × bits, and why not."""
    from rich.console import Console

    from qb_cluster.catalog.plugins import registered
    from qb_cluster.plan.support_matrix import support_json_lines, support_matrix, support_table

    entries = list(support_matrix(names or sorted(registered("backend"))))
    if as_json:
        _print_lines(support_json_lines(entries))
    else:
        Console().print(support_table(entries))
    if check and not _check_support(entries):
        sys.exit(EXIT_SOME_FAILED)


@cli.command()
@click.argument("names", nargs=-1)
def selfcheck(names: tuple[str, ...]) -> None:
    """Check quantizers, observers, metrics and the kernels of backends against known laws."""
    from rich.console import Console

    from qb_cluster.selfcheck import print_checks, run_selfcheck

    if not print_checks(run_selfcheck(names or None), Console()):
        sys.exit(EXIT_SOME_FAILED)


@cli.command()
@click.argument("folder")
@click.option("--model", required=True, help="Label of the model.")
@click.option("--scheme", default="weight_only", show_default=True, help="Label of the scheme.")
@click.option("--bits", type=float, help="Bits per weight at most.")
@click.option("--sqnr", type=float, help="SQNR of the outputs in dB at least.")
def propose(folder: str, model: str, scheme: str, bits: float | None, sqnr: float | None) -> None:
    """Propose a mixed-precision scheme from the layers that a run has measured.

    The run must hold simulated cells of one scheme over several bit-widths, with
    `measure: {layers: true}`. What is printed goes into `schemes` of the next sweep.
    """
    from qb_cluster.report.proposal import propose_from_run

    click.echo(propose_from_run(folder, model, scheme, bits, sqnr), nl=False)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all that was found.")
def node(*, as_json: bool) -> None:
    """Print what this machine is, for Ray: node=$(qb node) && ray start --address=… $node."""
    from qb_cluster.nodes.self_description import describe_this_node

    found = describe_this_node()
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(json.dumps(found.as_json()) if as_json else " ".join(found.ray_arguments()))


@cli.command()
@click.option("--address", help="Ray cluster, HOST:PORT or auto; this machine alone else.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, all labels.")
@_ALLOW_UNAUTHENTICATED
def devices(address: str | None, *, as_json: bool, allow_unauthenticated: bool) -> None:
    """Show what a cluster has: its nodes, and the devices of a spec that they can be."""
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
    """Run the command line and exit: 0 done, 2 cannot start, 3 some cells failed, 130 stopped."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # plug-ins are looked up where qb runs
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except QuantBenchError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped; the same command goes on where this one ended", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


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


def _check_support(entries: "Sequence[Entry]") -> bool:
    """Run every native entry on digits; tells whether every claim held."""
    import tempfile

    import pandas as pd
    from rich.console import Console

    from qb_cluster.catalog import plugins
    from qb_cluster.contracts import Ref
    from qb_cluster.dispatch.support_check import DIGITS_MODELS, check_spec, claims
    from qb_cluster.launch import launch
    from qb_cluster.spec import load_spec
    from qb_cluster.store.reading import read_results

    console = Console()
    names = dict.fromkeys(entry.backend for entry in entries)
    made = [plugins.make("backend", Ref(name, name)) for name in names]
    schemes = dict.fromkeys(entry.scheme.target for entry in entries)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in DIGITS_MODELS:
            text = check_spec(kind, made, schemes)
            if text is not None:
                spec = Path(folder, f"{kind}.yaml")
                spec.write_text(text, encoding="utf-8")
                launch(load_spec(spec), str(Path(folder, kind)), console)
                tables.append(read_results(str(Path(folder, kind))))
    held = True
    for claim in claims(entries, pd.concat(tables)):
        entry = claim.entry
        words = ", ".join(f"{model} {status}" for model, status in claim.statuses.items())
        if not claim.holds or set(claim.statuses.values()) != {"ok"}:
            mark = "as warned" if claim.holds else "BROKEN CLAIM"
            console.print(
                f"{mark}: {entry.backend} {entry.scheme.label} {entry.bits}: {words}",
                highlight=False,
                markup=False,
            )
        held = held and claim.holds
    console.print("every native entry holds" if held else "some native entries do not hold")
    return held
