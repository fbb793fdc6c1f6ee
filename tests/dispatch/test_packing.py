from dataclasses import replace

import numpy as np
from sweep_cells import cell_of, outcome_of

from qb_cluster.contracts import (
    ArtifactFacts,
    ArtifactRef,
    Calibration,
    LayerSensitivity,
    Predictions,
    QualityResult,
    SampleBlock,
    Task,
)
from qb_cluster.dispatch.packing import pack, unpack


def tasks_of(count):
    baseline = QualityResult(ArtifactRef("d" * 64, "bin", 10, ArtifactFacts(10, 10, 10)), "o" * 64)
    first = replace(cell_of("a", 1), calibration=Calibration())
    cells = [replace(first, cell_id=f"{number:016x}") for number in range(count)]
    return tuple(Task(cell, "quality", 1, (0, 1), baseline) for cell in cells)


def test_tasks_come_back_equal():
    tasks = tasks_of(3)
    assert unpack(pack(tasks)) == tasks


def test_what_tasks_share_travels_once_and_stays_shared():
    tasks = tasks_of(64)
    data = pack(tasks)
    assert len(data) < 64 * 120  # a cell alone takes ten times as much
    back = unpack(data)
    assert len({id(task.baseline) for task in back}) == 1
    assert len({id(task.cell.model) for task in back}) == 1


def test_outcomes_come_back_with_their_arrays():
    arrays = (np.array(["a", "b"]), np.array([0, 1]), np.array([1, 1]), np.array([0.0, 1.0]))
    block = SampleBlock(0, 1, "quantized", np.array([5, 7], dtype=np.int64))
    layer = LayerSensitivity("fc", 10, 20, "only", "w4", 20.0, None, None)
    outcome = replace(
        outcome_of(tasks_of(1)[0]),
        values={"quality": 0.5, "note": None},
        predictions=Predictions(*arrays),
        samples=(block,),
        layers=(layer,),
    )
    (back,) = unpack(pack([outcome]))
    predictions, samples = back.predictions, back.samples
    names = ("example_ids", "targets", "predicted", "scores")
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(getattr(predictions, name), array)
        assert getattr(predictions, name).dtype == array.dtype
    np.testing.assert_array_equal(samples[0].latency_ns, block.latency_ns)
    assert (samples[0].block, samples[0].position, samples[0].arm) == (0, 1, "quantized")
    rest = {"predictions": None, "samples": ()}
    assert replace(back, **rest) == replace(outcome, **rest)
