"""Other ways to run the same cells: Ray Tune, plain Ray tasks, Hydra, a process a cell.

Each way calls ``app``, named as ``module:function``, with the number of a cell and keeps the
numbers that it returns. The clock runs from handing over the cells to having the last answer:
starting Ray and importing a tool come before it. ``warm`` cells, run before the clock, let tools
that keep their processes pay for what these import. So peers are timed without their start-up.
"""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

Answer = dict[str, float | None]
App = Callable[[int], Answer]
P = ParamSpec("P")
T = TypeVar("T")

_HERE = str(Path(__file__).parent)
_ONE_CELL = "import sys, peers; peers.print_answer(sys.argv[1], int(sys.argv[2]))"


@dataclass(frozen=True, slots=True)
class Timed:
    """What running some cells took, in seconds, and what they answered, by number."""

    seconds: float
    answers: dict[int, Answer]

    @property
    def per_cell(self) -> float:
        """Seconds a cell, wall time."""
        return self.seconds / len(self.answers)


Peer = Callable[[str, Sequence[int], Sequence[int], int], Timed]
"""Takes an app, cells, warm cells, and how many cores there are."""


def fresh(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process, which has imported and allocated nothing yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(function, *args, **kwargs).result()


def find(app: str) -> App:
    """Import what ``module:function`` names."""
    module, _, name = app.partition(":")
    found: App = getattr(import_module(module), name)
    return found


def tune_grid(app: str, cells: Sequence[int], warm: Sequence[int], cores: int) -> Timed:
    """Ray Tune: a grid search with one trial a cell; trials reuse actors, its fastest way."""
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        tune.report({"answer": find(app)(config["cell"])})

    def search(numbers: Sequence[int], folder: str) -> tune.ResultGrid:
        tuner = tune.Tuner(
            trial,
            param_space={"cell": tune.grid_search(list(numbers))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # verbose=0 is not silent
            return tuner.fit()

    with tempfile.TemporaryDirectory() as folder, _local_ray(cores):
        if warm:
            search(warm, folder)
        began = time.perf_counter()
        results = search(cells, folder)
        seconds = time.perf_counter() - began
        answers = {
            result.config["cell"]: result.metrics["answer"]
            for result in results
            if result.config is not None and result.metrics
        }
    return Timed(seconds, answers)


def ray_tasks_one_by_one(app: str, cells: Sequence[int], warm: Sequence[int], cores: int) -> Timed:
    """Plain Ray: the next task is submitted when the last one's answer is there."""
    return _ray_tasks(app, cells, warm, cores, window=1)


def ray_tasks_windowed(app: str, cells: Sequence[int], warm: Sequence[int], cores: int) -> Timed:
    """Plain Ray: up to 64 tasks a core are pending."""
    return _ray_tasks(app, cells, warm, cores, window=64 * cores)


def _ray_tasks(
    app: str, cells: Sequence[int], warm: Sequence[int], cores: int, window: int
) -> Timed:
    import ray

    with _local_ray(cores):
        task = ray.remote(lambda number: (number, find(app)(number)))
        ray.get([task.remote(number) for number in warm or cells[:cores]])
        began = time.perf_counter()
        answers, waiting, pending = {}, deque(cells), []
        while waiting or pending:
            while waiting and len(pending) < window:
                pending.append(task.remote(waiting.popleft()))
            ready, pending = ray.wait(pending, num_returns=min(len(pending), max(1, window // 8)))
            answers.update(ray.get(ready))
        return Timed(time.perf_counter() - began, answers)


def hydra_joblib(app: str, cells: Sequence[int], warm: Sequence[int], cores: int) -> Timed:
    """Hydra: one multirun over all cells with the joblib launcher, whose processes live on.

    Joblib replaces one that has grown by 300 MB, which importing frameworks is enough for.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from joblib.externals.loky import get_reusable_executor

    logging.disable(logging.INFO)  # a line for each job
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cell.yaml").write_text("number: 0\n")

        @hydra.main(version_base=None, config_path=folder, config_name="cell")
        def job(config: Any) -> None:
            answer = find(app)(config.number)
            output = Path(HydraConfig.get().runtime.output_dir, "answer.json")
            output.write_text(json.dumps([config.number, answer]))

        def multirun(numbers: Sequence[int], results: Path) -> None:
            sys.argv = [
                "job.py",
                "--multirun",
                f"number={','.join(map(str, numbers))}",
                "hydra/launcher=joblib",
                f"hydra.launcher.n_jobs={cores}",
                f"hydra.sweep.dir={results}",
            ]
            job()

        multirun(warm or cells[:cores], Path(folder, "warm"))
        began = time.perf_counter()
        multirun(cells, Path(folder, "cells"))
        seconds = time.perf_counter() - began
        get_reusable_executor().shutdown(kill_workers=True)  # else this process waits for them
        files = Path(folder, "cells").glob("*/answer.json")
        return Timed(seconds, dict(json.loads(file.read_text()) for file in files))


def process_a_cell(app: str, cells: Sequence[int], warm: Sequence[int], cores: int) -> Timed:
    """A new interpreter for each cell, as many at a time as there are cores."""
    del warm  # nothing is kept

    def run(number: int) -> tuple[int, Answer]:
        command = [sys.executable, "-c", _ONE_CELL, app, str(number)]
        done = subprocess.run(command, check=True, capture_output=True)
        answer: Answer = json.loads(done.stdout.splitlines()[-1])
        return number, answer

    began = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        answers = dict(threads.map(run, cells))
    return Timed(time.perf_counter() - began, answers)


def print_answer(app: str, number: int) -> None:
    """Answer for one cell on the last line of standard output."""
    print(json.dumps(find(app)(number)))


def let_children_import() -> None:
    """Make the modules of this folder importable in every process started from here on."""
    paths = [_HERE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


@contextlib.contextmanager
def _local_ray(cores: int) -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()
