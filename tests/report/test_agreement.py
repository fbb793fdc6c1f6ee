from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from stored_cells import failed, make_cell, quality

from qb_cluster.evaluation.deviation import deviation
from qb_cluster.report.agreement import COLUMNS, agreement
from qb_cluster.report.analysis import analyse
from qb_cluster.report.document import build
from qb_cluster.store.reading import read_run

RNG = np.random.default_rng(0)
N = 20


def outcome(cell, predicted=None, ids=None, **values):
    found = quality(cell, n=N, right=N, worse=1, better=0, **values)
    changes = {"predicted": predicted, "example_ids": ids}
    changes = {name: array for name, array in changes.items() if array is not None}
    return replace(found, predictions=replace(found.predictions, **changes))


def keep(path, **outputs):
    (path / "artifacts").mkdir(exist_ok=True)
    for digest, array in outputs.items():
        np.save(path / "artifacts" / f"{digest}.npy", array)


def pair(frame, one, other):
    [row] = frame[(frame["cell_id"] == one.cell_id) & (frame["other_cell_id"] == other.cell_id)][
        ["top1_agreement", "sqnr_db"]
    ].to_numpy()
    return tuple(row)


def cells(*backends, **options):
    return [make_cell("weight_only", "w4", backend=backend, **options) for backend in backends]


def grid(path, scheme):
    [table] = [
        table
        for table in build(analyse(read_run(path))).tables
        if table.title.startswith(f"{scheme} · agreement")
    ]
    return {row[0]: row[1:] for row in table.rows}


def test_each_pair_of_backends_and_their_floats_is_compared_in_both_directions(store):
    one, two = cells("tflite", "pytorch")
    floats = [make_cell(None, backend=backend) for backend in ("tflite", "pytorch")]
    classes = np.arange(N) % 10
    other_classes = np.where(np.arange(N) < 5, 9 - classes, classes)
    path = store(
        (one, outcome(one, classes, outputs_digest="a")),
        (two, outcome(two, other_classes, outputs_digest="b")),
        *((cell, outcome(cell, classes, outputs_digest="c")) for cell in floats),
    )
    a, b = RNG.normal(size=(2, N, 10)).astype(np.float32)
    keep(path, a=a, b=b, c=a)
    frame = agreement(read_run(path))
    assert list(frame.columns) == list(COLUMNS)
    assert pair(frame, one, two) == pytest.approx((0.75, deviation(a, b).sqnr_db))
    assert pair(frame, two, one) == pytest.approx((0.75, deviation(b, a).sqnr_db))
    assert pair(frame, floats[0], one) == (1.0, np.inf)
    quantized = frame[frame["scheme"] == "weight_only"]
    assert len(quantized) == 4 * 3  # every ordered pair of two cells and their two floats
    assert set(quantized["execution"]) == {"native", "float"}
    matrix = quantized.pivot_table(
        index=["backend", "execution"],
        columns=["other_backend", "other_execution"],
        values="top1_agreement",
    )
    assert matrix.shape == (4, 4)
    assert len(frame[frame["scheme"] == "float"]) == 2


def test_a_scheme_that_is_called_float_has_a_matrix_beside_that_of_the_baselines(store):
    floats = [make_cell(None, backend=backend) for backend in ("tflite", "pytorch")]
    named = [make_cell("float", "w4", backend=backend) for backend in ("tflite", "pytorch")]
    frame = agreement(read_run(store(*((cell, outcome(cell)) for cell in [*floats, *named]))))
    own = frame[frame["is_baseline"]]
    assert set(own["cell_id"]) == {cell.cell_id for cell in floats}
    assert set(own["execution"]) == {"float"}
    of_scheme = frame[~frame["is_baseline"]].set_index("cell_id")["execution"]
    assert {of_scheme[cell.cell_id].iloc[0] for cell in named} == {"native"}
    assert len(of_scheme) == 4 * 3


def test_the_grid_of_the_float_models_comes_first(store):
    pairs = [
        make_cell(scheme, "w8a8", backend=backend)
        for scheme in ("dynamic", None, "static")
        for backend in ("tflite", "pytorch")
    ]
    path = store(*((cell, outcome(cell)) for cell in pairs))
    titles = [table.title for table in build(analyse(read_run(path))).tables]
    first_words = [title.partition(" · ")[0] for title in titles if "agreement" in title]
    assert first_words == ["float", "dynamic", "static"]


def test_one_backend_alone_agrees_with_nobody(store):
    [one] = cells("tflite")
    baseline = make_cell(None)
    path = store((one, outcome(one)), (baseline, outcome(baseline)))
    assert agreement(read_run(path)).empty
    assert not any("agreement" in table.title for table in build(analyse(read_run(path))).tables)


@pytest.mark.parametrize(
    "other",
    [
        make_cell("weight_only", "w8", backend="pytorch"),
        make_cell("dynamic", "w4a8", backend="pytorch"),
        make_cell("weight_only", "w4", backend="pytorch", model="digits-mlp"),
        make_cell("weight_only", "w4", backend="pytorch", dataset="mnist"),
    ],
)
def test_other_bits_schemes_models_and_data_are_not_compared(store, other):
    [one] = cells("tflite")
    assert agreement(read_run(store((one, outcome(one)), (other, outcome(other))))).empty


def test_calibrations_have_a_matrix_each(store):
    rows = [
        make_cell("static", "w8a8", backend=backend, seed=seed)
        for backend in ("tflite", "pytorch")
        for seed in (0, 1)
    ]
    path = store(*((cell, outcome(cell)) for cell in rows))
    frame = agreement(read_run(path))
    assert len(frame) == 4
    assert sorted(frame["calibration_seed"]) == [0, 0, 1, 1]
    [(place,)] = grid(path, "static").values()
    assert [line for line in place.splitlines() if line.endswith(":")] == ["seed 0:", "seed 1:"]


def test_outputs_that_are_gone_damaged_or_of_another_shape_have_no_sqnr(store):
    rows = cells("tflite", "pytorch", "onnxruntime", "tensorflow", "other")
    digests = ("whole", "gone", "damaged", "shape", None)
    path = store(*((c, outcome(c, outputs_digest=d)) for c, d in zip(rows, digests, strict=True)))
    keep(path, whole=np.ones((N, 10), np.float32), shape=np.ones((N, 9), np.float32))
    (path / "artifacts" / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00")
    frame = agreement(read_run(path))
    assert len(frame) == 5 * 4
    assert frame["sqnr_db"].isna().all()
    assert (frame["top1_agreement"] == 1.0).all()


def test_outputs_that_would_run_code_are_not_loaded(store):
    one, two = cells("tflite", "pytorch")
    path = store((one, outcome(one, outputs_digest="x")), (two, outcome(two, outputs_digest="x")))
    keep(path, x=np.array([{"an": "object"}], dtype=object))
    assert agreement(read_run(path))["sqnr_db"].isna().all()


def test_other_examples_or_outputs_without_classes_have_no_top1_agreement(store):
    one, two, three = cells("tflite", "pytorch", "onnxruntime")
    path = store(
        (one, outcome(one)),
        (two, outcome(two, ids=np.array([f"other-{i}" for i in range(N)]))),
        (three, outcome(three, predicted=np.full(N, -1))),
    )
    frame = agreement(read_run(path))
    assert len(frame) == 6
    assert frame["top1_agreement"].isna().all()
    assert {place for row in grid(path, "weight_only").values() for place in row} == {
        "not comparable"
    }


def test_a_broken_kernel_whose_outputs_were_kept_is_in_the_matrix(store):
    one, two = cells("tflite", "pytorch")
    bad = failed(one, "kernel_mismatch", "garbage", values={"outputs_digest": "a"})
    path = store((one, bad), (two, outcome(two, outputs_digest="b")))
    keep(path, a=np.ones((N, 10), np.float32), b=np.full((N, 10), 2, np.float32))
    frame = agreement(read_run(path))
    assert pair(frame, one, two) == pytest.approx((np.nan, 0.0), nan_ok=True)
    assert len(frame) == 2


@pytest.mark.parametrize("status", ["not_applied", "failed", "oom"])
def test_a_cell_that_is_no_result_for_another_reason_is_in_no_matrix(store, status):
    one, two = cells("tflite", "pytorch")
    bad = failed(one, status, "no", values={"outputs_digest": "a"})
    path = store((one, bad), (two, outcome(two, outputs_digest="a")))
    keep(path, a=np.ones((N, 10), np.float32))
    assert agreement(read_run(path)).empty


def test_a_grid_shows_each_pair_once_and_which_side_was_simulated(store):
    rows = [
        *cells("tflite", "pytorch"),
        *cells("onnxruntime", execution="simulated"),
        *(make_cell(None, backend=name) for name in ("tflite", "pytorch", "onnxruntime")),
    ]
    path = store(*((cell, outcome(cell, outputs_digest="x")) for cell in rows))
    keep(path, x=np.ones((N, 10), np.float32))
    assert grid(path, "weight_only") == {
        "digits-cnn\nonnxruntime · pytorch": ("100.0%\nequal\nsim",),
        "digits-cnn\nonnxruntime · tflite": ("100.0%\nequal\nsim",),
        "digits-cnn\npytorch · tflite": ("100.0%\nequal",),
    }
    assert len(grid(path, "float")) == 3


def test_a_stage_that_was_run_again_counts_with_what_it_predicted_last(store, tmp_path):
    one, two = cells("tflite", "pytorch")
    path = store((one, outcome(one)), (two, outcome(two)))
    part = max((path / "predictions").glob("[0-9]*.parquet"))
    again = pq.read_table(part).filter(pc.field("cell_id") == one.cell_id)
    changed = pa.array([99] * N, pa.int64())
    again = again.set_column(3, again.schema.field("predicted"), changed)
    pq.write_table(again, path / "predictions" / "later.parquet")
    assert pair(agreement(read_run(path)), one, two)[0] == 0.0
