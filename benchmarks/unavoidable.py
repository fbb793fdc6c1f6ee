"""The work that nobody can spare who wants all cells of a plan, stage by stage, undisturbed."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from one_cell import quantization

from qb_cluster.catalog import plugins
from qb_cluster.catalog.dataset import Dataset, load_dataset
from qb_cluster.contracts import Artifact, Backend, Cell, Quantization, Ref
from qb_cluster.errors import CellError
from qb_cluster.evaluation import comparison, inference, kernel
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.nodes.cores import THREAD_VARIABLES, available_cores, pinned

OWN = ("quantize", "open", "evaluate", "compare")
"""Stages that a cell needs for itself; all others are shared."""

Outputs = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of one core.

    Attributes:
        stages: by stage, over all cells: ``load`` (each model and dataset once), ``convert`` and
            ``float run`` (opening included; each once a model, dataset and backend),
            ``simulation`` (of the schemes of native cells, whose kernels are held against it;
            once a model, dataset, scheme, bits and calibration), and those in ``OWN``, which
            every cell has.
        first_use: what a core pays once, mostly for importing frameworks: for one cell of each
            backend, scheme and execution, how much longer running it takes for the first time
            than for the second.
    """

    stages: dict[str, float]
    first_use: float

    def wall(self, cores: int) -> float:
        """Seconds for all of it if nothing else is done and no core ever waits."""
        return sum(self.stages.values()) / cores + self.first_use


def measure_work(cells: Sequence[Cell]) -> Work:
    """Run the stages of all cells one after the other in this process, on one core.

    There is no Ray and no store, and nothing is done twice that cells can share.

    Args:
        cells: those of a plan that can be run, in its order.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"
    with pinned(available_cores()[:1]):
        samples = [cells[number] for number in one_of_each_kind(cells)]
        first, second = (sum(_stages(samples).values()) for _ in range(2))
        return Work(_stages(cells), first - second)


def one_of_each_kind(cells: Sequence[Cell]) -> list[int]:
    """Give the number of one cell of each backend, scheme and execution."""
    return list({(c.backend, c.scheme, c.execution): i for i, c in enumerate(cells)}.values())


def _stages(cells: Sequence[Cell]) -> dict[str, float]:
    run = _Undisturbed()
    for cell in cells:
        with suppress(CellError):  # its row would say why; what it took until then was spent
            run.cell(cell)
    return dict(run.seconds)


class _Undisturbed:
    """Runs cells, keeps what they share, and counts the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._kept: dict[Hashable, Any] = {}

    def cell(self, cell: Cell) -> None:
        metric = plugins.find("metric", cell.measure.metric.target)
        dataset = self._dataset(cell)
        floats = self._float_outputs(cell)
        if cell.is_baseline:
            with self._timed("compare"):
                comparison.score(metric, floats, dataset.targets)
            return
        outputs = self._quantized(cell, cell.backend, quantization(cell), OWN)
        if cell.execution == "simulated":
            self._kept.setdefault(_twin(cell, cell.backend), outputs)
        with self._timed("compare"):
            comparison.compare(metric, floats, outputs, dataset.targets, cell.measure.confidence)
        if cell.execution == "native" and cell.simulator is not None:
            reference = self._simulation(cell, cell.simulator)
            with self._timed("compare"):
                deviation(floats, reference)
                deviation(reference, outputs)
                kernel.faithfulness(floats, outputs, reference)

    def _simulation(self, cell: Cell, simulator: Ref) -> Outputs:
        asked = replace(quantization(cell), execution="simulated")
        return self._once(
            _twin(cell, simulator),
            lambda: self._quantized(cell, simulator, asked, ("simulation",) * len(OWN)),
        )

    def _quantized(
        self, cell: Cell, backend_ref: Ref, asked: Quantization, names: Sequence[str]
    ) -> Outputs:
        backend, dataset = self._backend(backend_ref), self._dataset(cell)
        model, baseline = self._model(cell), self._baseline(cell, backend_ref)
        with self._timed(names[0]):
            calibration = None
            if cell.calibration is not None:
                calibration = dataset.calibration_sample(cell.calibration)
            artifact = backend.quantize(lambda: model, baseline, asked, calibration)
        with self._timed(names[1]):
            executable = backend.open(artifact, lambda: model, cell.device.threads)
        with self._timed(names[2]):
            return inference.run(executable, dataset.inputs, cell.measure.batch_size)

    def _float_outputs(self, cell: Cell) -> Outputs:
        backend, dataset = self._backend(cell.backend), self._dataset(cell)
        model, baseline = self._model(cell), self._baseline(cell, cell.backend)

        def run() -> Outputs:
            with self._timed("float run"):
                executable = backend.open(baseline, lambda: model, cell.device.threads)
                return inference.run(executable, dataset.inputs, cell.measure.batch_size)

        return self._once((cell.baseline_cell_id, "outputs"), run)

    def _baseline(self, cell: Cell, backend_ref: Ref) -> Artifact:
        backend, model = self._backend(backend_ref), self._model(cell)
        example = self._dataset(cell).example()
        key = (cell.model, cell.dataset, backend_ref)
        return self._once(key, lambda: backend.convert(lambda: model, example), "convert")

    def _model(self, cell: Cell) -> Any:
        return self._once(cell.model, lambda: plugins.make("model", cell.model), "load")

    def _dataset(self, cell: Cell) -> Dataset:
        return self._once(
            (cell.dataset, cell.measure.examples),
            lambda: load_dataset(cell.dataset).evaluation(cell.measure.examples),
            "load",
        )

    def _backend(self, ref: Ref) -> Backend:
        made: Backend = self._once((ref, "backend"), lambda: plugins.make("backend", ref), "load")
        return made

    def _once(self, key: Hashable, make: Callable[[], T], stage: str | None = None) -> T:
        if key not in self._kept:
            with self._timed(stage) if stage else nullcontext():
                self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


def _twin(cell: Cell, simulator: Ref) -> Hashable:
    return cell.model, cell.dataset, cell.scheme, cell.bits, cell.calibration, simulator
