"""Everything a report says, before it is put into words."""

from dataclasses import dataclass

import pandas as pd

from qb_cluster.report.agreement import agreement
from qb_cluster.report.bits import BitSeries, bit_series
from qb_cluster.report.comparison import compare
from qb_cluster.report.devices import devices
from qb_cluster.report.sensitivity import sensitivity
from qb_cluster.store.reading import StoredRun


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was found in a run.

    Attributes:
        run: the run.
        comparison: see ``comparison.compare``.
        devices: see ``devices.devices``.
        agreement: see ``agreement.agreement``.
        bits: see ``bits.bit_series``.
        layers: see ``sensitivity.sensitivity``.
    """

    run: StoredRun
    comparison: pd.DataFrame
    devices: pd.DataFrame
    agreement: pd.DataFrame
    bits: tuple[BitSeries, ...]
    layers: pd.DataFrame


def analyse(run: StoredRun) -> Analysis:
    """Look at a run from all sides."""
    return Analysis(
        run,
        compare(run.results),
        devices(run.results),
        agreement(run),
        tuple(bit_series(run.results)),
        sensitivity(run.results, run.layers),
    )
