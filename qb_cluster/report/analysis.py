"""Everything a report says, before it is put into words."""

from dataclasses import dataclass

import pandas as pd

from qb_cluster.contracts.judgement import Judgement
from qb_cluster.errors import RunFolderError
from qb_cluster.report.agreement import agreement
from qb_cluster.report.bits import BitSeries, bit_series
from qb_cluster.report.comparison import compare
from qb_cluster.report.devices import devices
from qb_cluster.report.same import Unchanged, unchanged
from qb_cluster.report.sensitivity import sensitivity
from qb_cluster.store.reading import StoredRun


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was found in a run.

    Attributes:
        run: the run.
        judgement: what its verdicts are made by.
        comparison: see ``comparison.compare``.
        devices: see ``devices.devices``.
        agreement: see ``agreement.agreement``.
        bits: see ``bits.bit_series``.
        layers: see ``sensitivity.sensitivity``.
        unchanged: see ``same.unchanged``.
    """

    run: StoredRun
    judgement: Judgement
    comparison: pd.DataFrame
    devices: pd.DataFrame
    agreement: pd.DataFrame
    bits: tuple[BitSeries, ...]
    layers: pd.DataFrame
    unchanged: tuple[Unchanged, ...]


def analyse(run: StoredRun, judgement: Judgement | None = None) -> Analysis:
    """Look at a run from all sides.

    Args:
        run: the run.
        judgement: what to judge by; what the run's own sweep says unless given.

    Raises:
        RunFolderError: what the run's sweep says of that cannot be read.
    """
    judgement = judgement or judgement_of(run)
    comparison = compare(run.results, judgement)
    return Analysis(
        run,
        judgement,
        comparison,
        devices(comparison),
        agreement(run),
        tuple(bit_series(run.results)),
        sensitivity(run.results, run.layers),
        unchanged(comparison, run.results.set_index("cell_id")["outputs_digest"]),
    )


def judgement_of(run: StoredRun) -> Judgement:
    """Give what a run's sweep wants its results judged by; the defaults for older folders.

    Raises:
        RunFolderError: it cannot be read.
    """
    if run.judgement is None:
        return Judgement()
    try:
        return Judgement.from_json(run.judgement)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{run.folder}: what run.json says under 'judgement' cannot be read ({error}); run "
            "`qb run` with its spec again"
        ) from error
