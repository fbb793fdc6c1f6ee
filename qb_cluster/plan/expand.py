"""A sweep to its cells, one after another.

Order: model, dataset, device, backend; within such a group scheme, bits, calibration,
execution, and each float baseline just before the first cell that needs it.

Model files. What kind of model a file holds is known by its name, and a backend that does not
take that kind does nothing for it. What a callable returns shows only when a worker calls it.

Rules. ``exclude`` and ``overrides`` match what a cell finally is: its execution is what the plan
shows (``native``, ``simulated``, ``unsupported``). Overrides apply in order, each matching what
the earlier ones left; ``exclude`` comes last and drops cells of the grid only; cells of includes
come after those of the grid in their group, each cell once.

Baselines. A cell and its baseline have the same model, dataset, backend, device, metric, batch
size, number of examples and confidence. A baseline's latency protocol, time limit and retries are
those of its group: what the overrides leave that name no scheme, bits, execution or calibration. So
native, simulated and differently timed cells share one baseline, and a group has several only
where overrides give its cells different metrics, batch sizes, examples or confidences. A baseline
is planned when a cell that can run needs it.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple, TypeVar

from qb_cluster.catalog.model import ModelKind
from qb_cluster.contracts import Cell, Device, Ref
from qb_cluster.contracts.match import Axis
from qb_cluster.plan.identity import GroupIdentity
from qb_cluster.plan.template import Template, template
from qb_cluster.spec import NamedBackend, SweepSpec, kind_of, label_of, not_installed, on_gpu, takes
from qb_cluster.spec.document import parse

_TEMPLATES: Final = 256  # kept at once: groups of one model share nearly all of theirs

T = TypeVar("T")
Outer = TypeVar("Outer", Ref, Device, NamedBackend)


def expand(spec: SweepSpec) -> Iterator[Cell]:
    """Give the cells of a sweep, baselines before the cells that need them.

    Lazy, and flat in memory: nothing is kept but what the current group needs.

    Raises:
        PlugInError: a backend cannot tell what it supports.
    """
    for group in _groups(spec):
        yield from _cells(spec, group)


def expected_size(spec: SweepSpec) -> int:
    """Count the cells that ``expand`` gives, without making them.

    Raises:
        PlugInError: a backend cannot tell what it supports.
    """
    return sum(group.template.cells for group in _groups(spec))


def check_size(spec: SweepSpec) -> None:
    """Refuse a plan without cells, or with more than ``max_cells``. Counts no further.

    Raises:
        SpecError: it has none, or too many.
        PlugInError: a backend cannot tell what it supports.
    """
    count = 0
    for group in _groups(spec):
        count += group.template.cells
        if spec.max_cells is not None and count > spec.max_cells:
            raise parse(spec.text, spec.source).error(
                ("max_cells",), f"the plan has more than {spec.max_cells} cells, baselines included"
            )
        if count and spec.max_cells is None:
            return
    if not count:
        raise parse(spec.text, spec.source).error(
            ("exclude",), "these rules drop every cell of the sweep"
        )


class _Group(NamedTuple):
    model: Ref
    dataset: Ref
    device: Device
    backend: NamedBackend
    template: Template


class _Scope(NamedTuple):
    """What applies to a part of the plan: bit i stands for the i-th of the spec's tuple."""

    products: int
    exclude: int
    overrides: int

    def within(self, other: "_Scope") -> "_Scope":
        return _Scope(
            self.products & other.products,
            self.exclude & other.exclude,
            self.overrides & other.overrides,
        )


def _groups(spec: SweepSpec) -> Iterator[_Group]:
    models = _scopes(spec, "model", [p.model for p in spec.products])
    datasets = _scopes(spec, "dataset", [p.dataset for p in spec.products])
    devices = _scopes(spec, "device", [p.device for p in spec.products])
    backends = _scopes(spec, "backend", [p.backend for p in spec.products])

    @lru_cache(maxsize=_TEMPLATES)
    def template_of(
        backend: NamedBackend,
        kind: ModelKind | None,
        refusal: str | None,
        scope: _Scope,
        simulates: bool,
    ) -> Template:
        return template(
            spec,
            backend,
            kind,
            refusal,
            _chosen(spec.products, scope.products),
            _chosen(spec.exclude, scope.exclude),
            _chosen(spec.overrides, scope.overrides),
            simulates=simulates,
        )

    for model, of_model in models:
        kind = kind_of(model)
        for dataset, of_dataset in datasets:
            in_dataset = of_model.within(of_dataset)
            if not in_dataset.products:
                continue
            for device, of_device in devices:
                in_device = in_dataset.within(of_device)
                for backend, of_backend in backends:
                    in_group = in_device.within(of_backend)
                    is_meant = not device.backends or backend.ref.label in device.backends
                    if in_group.products and is_meant:
                        is_board = device.ssh is not None
                        simulates = device.prepares
                        doing = on_gpu(backend) if device.gpus else backend
                        refusal = _refusal(backend, model, kind, is_board)
                        if doing is None:
                            doing = backend
                            refusal = f"{backend.ref.label} computes on no GPU"
                        made = template_of(doing, kind, refusal, in_group, simulates)
                        yield _Group(model, dataset, device, backend, made)


def _refusal(
    backend: NamedBackend, model: Ref, kind: ModelKind | None, is_board: bool
) -> str | None:
    """Tell why a backend can do nothing for a model; ``None`` when it may."""
    if not takes(backend, kind):
        taken = ", ".join(backend.backend.takes)
        return f"{backend.ref.label} takes {taken}; {model.label} is {kind}"
    if is_board and not hasattr(backend.backend, "board_runtime"):
        return f"{backend.ref.label} has no runtime for boards without Ray"
    return not_installed(backend)


def _scopes(
    spec: SweepSpec, axis: Axis, columns: Sequence[tuple[Outer, ...]]
) -> list[tuple[Outer, _Scope]]:
    """List the entries of an outer axis, each once, with what applies to it."""
    members = [frozenset(column) for column in columns]
    return [
        (
            entry,
            _Scope(
                _mask(entry in member for member in members),
                _mask(match.accepts(axis, label_of(entry)) for match in spec.exclude),
                _mask(o.when.accepts(axis, label_of(entry)) for o in spec.overrides),
            ),
        )
        for entry in dict.fromkeys(chain.from_iterable(columns))
    ]


def _mask(flags: Iterable[bool]) -> int:
    return sum(1 << index for index, flag in enumerate(flags) if flag)


def _chosen(items: Sequence[T], mask: int) -> list[T]:
    return [item for index, item in enumerate(items) if mask >> index & 1]


def _cells(spec: SweepSpec, group: _Group) -> Iterator[Cell]:
    model, dataset, device, backend, template = group
    identity = GroupIdentity(model, dataset, device, backend.ref)
    baseline_ids = [identity.cell_id(baseline.inner) for baseline in template.baselines]
    planned: set[int] = set()
    for row in template.rows:
        baseline_id = baseline_ids[row.baseline]
        if row.execution is not None and row.baseline not in planned:
            planned.add(row.baseline)
            baseline = template.baselines[row.baseline]
            yield Cell(
                cell_id=baseline_id,
                sweep=spec.sweep,
                model=model,
                dataset=dataset,
                backend=backend.ref,
                device=device,
                scheme=None,
                bits=None,
                execution="native",
                reason="",
                calibration=None,
                measure=baseline.measure,
                timeout_s=baseline.timeout_s,
                timeout_retries=baseline.timeout_retries,
                baseline_cell_id=baseline_id,
            )
        yield Cell(
            cell_id=identity.cell_id(row.inner),
            sweep=spec.sweep,
            model=model,
            dataset=dataset,
            backend=backend.ref,
            device=device,
            scheme=row.scheme,
            bits=row.bits,
            execution=row.execution,
            reason=row.reason,
            calibration=row.calibration,
            measure=row.measure,
            timeout_s=row.timeout_s,
            timeout_retries=row.timeout_retries,
            baseline_cell_id=baseline_id,
            simulator=row.simulator,
        )
