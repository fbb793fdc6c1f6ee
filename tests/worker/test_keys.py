"""Names of twins and keys of artifacts: all of a cell counts, less what is named with a reason."""

from dataclasses import fields, replace

import pytest
from another import CELL, KNOWN, with_field

from qb_cluster.catalog.counted import ARTIFACT, RESULT, TWIN
from qb_cluster.contracts import (
    Bits,
    Calibration,
    Cell,
    Device,
    Latency,
    Measure,
    Ref,
)
from qb_cluster.worker.reference import twin_name


def name(cell=CELL, known=KNOWN, simulator="simulator", scope="inputs"):
    return twin_name(cell, known, simulator, scope)


DECIDES_A_TWIN = {
    "scheme": replace(CELL, scheme=Ref("static", "static", '{"symmetric":false}')),
    "weight bits": replace(CELL, bits=Bits(3, 8)),
    "activation bits": replace(CELL, bits=Bits(4, 4)),
    "no calibration": replace(CELL, calibration=None),
    "samples": replace(CELL, calibration=Calibration(samples=64)),
    "seed": replace(CELL, calibration=Calibration(seed=1)),
    "observer": replace(CELL, calibration=Calibration(observer="entropy")),
    "percentile": replace(CELL, calibration=Calibration(percentile=99.0)),
    "examples": replace(CELL, measure=Measure(examples=10)),
    "batch size": replace(CELL, measure=Measure(batch_size=8)),
}
SHARES_A_TWIN = {
    "its simulation": replace(CELL, execution="simulated", backend=Ref("sim", "sim")),
    "another backend": replace(CELL, backend=Ref("other", "other")),
    "another device": replace(CELL, device=Device("board", 4, (("qb/board", "pi"),))),
    "another sweep": replace(CELL, sweep="t", cell_id="e", baseline_cell_id="e0", timeout_s=1),
    "other labels": replace(CELL, model=Ref("n", "m"), scheme=Ref("again", "static")),
    "another metric": replace(CELL, measure=Measure(metric=Ref("mse", "mse"))),
    "another protocol": replace(CELL, measure=Measure(latency=Latency(seed=7), confidence=0.9)),
}


@pytest.mark.parametrize("what", DECIDES_A_TWIN)
def test_whatever_decides_simulated_outputs_gives_the_twin_another_name(what):
    assert name(DECIDES_A_TWIN[what]) != name()


@pytest.mark.parametrize("what", SHARES_A_TWIN)
def test_cells_that_ask_for_one_simulation_share_a_twin(what):
    assert name(SHARES_A_TWIN[what]) == name()


def test_a_twin_is_of_one_model_one_dataset_and_one_simulator():
    names = {
        name(),
        name(simulator="edited"),
        name(known=replace(KNOWN, model="other weights")),
        name(known=replace(KNOWN, dataset="other examples")),
    }
    assert len(names) == 4
    assert name(known=replace(KNOWN, backend="x", metric="x", runtime="x")) == name()


@pytest.mark.parametrize("counted", [TWIN, ARTIFACT])
@pytest.mark.parametrize("kind", [Cell, Measure, Calibration])
def test_every_field_counts_or_is_named_with_a_reason(counted, kind):
    is_whole_named = kind is not Cell and kind.__name__.lower() in counted.but[Cell]
    for field in fields(kind):
        if kind is Cell:
            changed = with_field(CELL, field.name)
        else:
            part = kind.__name__.lower()
            changed = replace(CELL, **{part: with_field(getattr(CELL, part), field.name)})
        is_named = is_whole_named or bool(counted.but.get(kind, {}).get(field.name))
        assert (counted.text(changed) == counted.text(CELL)) == is_named, field.name


@pytest.mark.parametrize("counted", [RESULT, TWIN, ARTIFACT])
def test_what_does_not_count_is_there_at_all(counted):
    for kind, named in counted.but.items():
        assert named.keys() <= {field.name for field in fields(kind)}


def test_one_artifact_serves_all_devices_and_measures_and_no_other_calibration():
    again = replace(CELL, device=Device(threads=4), measure=Measure(examples=3), sweep="t")
    assert ARTIFACT.text(again) == ARTIFACT.text(CELL)
    for what in ("no calibration", "samples", "seed", "observer", "percentile", "weight bits"):
        assert ARTIFACT.text(DECIDES_A_TWIN[what]) != ARTIFACT.text(CELL), what
    assert ARTIFACT.text(replace(CELL, execution="simulated")) != ARTIFACT.text(CELL)
