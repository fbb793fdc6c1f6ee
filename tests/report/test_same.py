import json
from dataclasses import replace

import pandas as pd
import pytest
from stored_cells import ONE_THREAD, failed, make_cell, quality

from qb_cluster.contracts import Calibration, Device
from qb_cluster.report.analysis import analyse
from qb_cluster.store.reading import read_run

BASELINE = make_cell(None)
MINMAX = Calibration()
ENTROPY = Calibration(observer="entropy")
MSE = Calibration(observer="mse")


def ran(cell, outputs):
    return cell, quality(cell, outputs_digest=outputs)


def static(calibration, outputs, bits="w8a8", **of):
    return ran(make_cell("static", bits, calibration=calibration, **of), outputs)


@pytest.fixture
def found(store):
    return lambda *cells: analyse(read_run(store(*cells)))


def same_as(analysis):
    cells = analysis.comparison.set_index("cell_id")["same_as"]
    return {cell_id: other for cell_id, other in cells.items() if pd.notna(other)}


def lines(analysis):
    return [one.line() for one in analysis.unchanged]


def test_a_cell_names_the_first_that_gave_the_same_outputs(found):
    cells = [static(one, "same") for one in (MSE, ENTROPY, MINMAX)]
    others = [static(MINMAX, "other", "w4a8"), ran(BASELINE, "float")]
    analysis = found(*cells, *others)
    ids = {cell.calibration.observer: cell.cell_id for cell, _ in cells}
    first, *rest = [one for one in analysis.comparison["cell_id"] if one in ids.values()]
    assert first == ids["entropy"]  # the report sorts by it
    assert same_as(analysis) == dict.fromkeys(rest, first)


def test_equal_outputs_of_other_models_backends_and_devices_are_no_finding(found):
    elsewhere = [
        {"model": "other"},
        {"dataset": "other"},
        {"backend": "pytorch"},
        {"device": Device("board")},
        {"device": Device("cpu", 2)},
    ]
    cells = [static(one, "same", **of) for of in [{}, *elsewhere] for one in (MINMAX,)]
    analysis = found(*cells)
    assert same_as(analysis) == {}
    assert lines(analysis) == []


def test_outputs_that_were_not_kept_are_the_same_as_none(found):
    analysis = found(static(MINMAX, None), static(ENTROPY, None))
    assert same_as(analysis) == {}
    assert lines(analysis) == []


def test_a_cell_that_gave_the_float_models_outputs_names_it_and_is_no_axis(found):
    applied = [make_cell("dynamic", bits) for bits in ("w8a8", "w6a8")]
    lost = make_cell("dynamic", "w4a8")
    error = failed(lost, "not_applied", "bit-identical", values={"outputs_digest": "float"})
    ok = [ran(cell, "float") for cell in applied]
    analysis = found(*ok, (lost, error), ran(BASELINE, "float"))
    alike = [cell.cell_id for cell in (*applied, lost)]
    assert same_as(analysis) == dict.fromkeys(alike, BASELINE.cell_id)
    assert lines(analysis) == []


def test_an_axis_that_changed_nothing_is_told_with_its_pairs(found):
    cells = [
        static(one, f"{backend} {bits}", bits, backend=backend)
        for one in (MINMAX, ENTROPY)
        for backend in ("onnxruntime", "tflite")
        for bits in ("w8a8", "w4a8")
    ]
    assert lines(found(*cells)) == [
        (
            "calibration: entropy gave the same outputs as minmax, bit for bit, in 4 of 4 pairs "
            "(onnxruntime static w8a8, onnxruntime static w4a8, …)"
        )
    ]


def test_one_pair_that_differs_is_enough_for_silence_about_its_backend(found):
    def cells(backend, **outputs):
        return [
            static(one, outputs.get(f"{one.observer}_{bits}", bits), bits, backend=backend)
            for one in (MINMAX, ENTROPY)
            for bits in ("w8a8", "w4a8")
        ]

    analysis = found(*cells("onnxruntime", entropy_w4a8="other"), *cells("tflite"))
    assert lines(analysis) == [
        (
            "calibration: entropy gave the same outputs as minmax, bit for bit, in 2 of 2 pairs "
            "(tflite static w8a8, tflite static w4a8)"
        )
    ]
    assert len(same_as(analysis)) == 3


def test_what_simulates_is_told_from_what_does_not(found):
    native = [static(MINMAX, "native"), static(ENTROPY, "other")]
    simulated = [static(one, "sim", execution="simulated") for one in (MINMAX, ENTROPY)]
    assert lines(found(*native, *simulated)) == [
        (
            "calibration: entropy gave the same outputs as minmax, bit for bit, in 1 of 1 pair "
            "(tflite static w8a8 simulated)"
        )
    ]


def test_a_third_value_that_is_the_same_is_told_once(found):
    few = [replace(one, samples=32) for one in (MSE, ENTROPY, MINMAX)]
    analysis = found(*(static(one, "same") for one in few))
    assert lines(analysis) == [
        (
            "calibration: entropy[samples=32], mse[samples=32] gave the same outputs as "
            "minmax[samples=32], bit for bit, in 2 of 2 pairs (tflite static w8a8)"
        )
    ]


def test_schemes_and_bits_are_axes_too(found):
    schemes = [
        ran(make_cell(scheme, bits, backend="onnxruntime"), bits)
        for scheme in ("dynamic", "dynamic[symmetric_activations=true]")
        for bits in ("w8a8", "w4a8")
    ]
    bits = [ran(make_cell("dynamic", bits), "same") for bits in ("w8a8", "w7a8")]
    assert lines(found(*schemes, *bits)) == [
        (
            "scheme: dynamic[symmetric_activations=true] gave the same outputs as dynamic, bit for "
            "bit, in 2 of 2 pairs (onnxruntime w8a8, onnxruntime w4a8)"
        ),
        "bits: w7a8 gave the same outputs as w8a8, bit for bit, in 1 of 1 pair (tflite dynamic)",
    ]


def test_cells_that_differ_in_two_axes_make_no_pair(found):
    analysis = found(static(MINMAX, "same"), static(ENTROPY, "same", "w4a8"))
    assert len(same_as(analysis)) == 1
    assert lines(analysis) == []


def test_cells_that_quantized_a_part_make_pairs_too(found):
    cells = [make_cell("static", "w8a8", calibration=one) for one in (MINMAX, ENTROPY)]
    analysis = found(*((c, quality(c, outputs_digest="same", covered_share=0.5)) for c in cells))
    assert set(analysis.comparison["status"]) == {"partial"}
    [line] = lines(analysis)
    assert "in 1 of 1 pair (" in line


def test_a_cell_that_is_not_ok_proves_nothing_about_an_axis(found):
    lost = make_cell("static", "w8a8", calibration=ENTROPY)
    late = (
        lost,
        quality(lost, outputs_digest="same"),
        failed(lost, "timeout", "no", stage="latency"),
    )
    assert lines(found(static(MINMAX, "same"), late)) == []


def test_the_first_screen_has_a_line_for_it_and_the_whole_report_the_cells(store, show):
    path = store(ran(BASELINE, "float"), static(MINMAX, "same"), static(ENTROPY, "same"))
    first = " ".join(show(path, full=False).split())
    assert "calibration: entropy gave the same outputs as minmax, bit for bit" in first
    everything = show(path, width=120)
    assert "axes that changed nothing" in everything
    assert "tflite static w8a8 minmax" in everything.partition("outputs that are the same")[2]
    told = json.loads(show(path, full=False, format="json"))
    assert [cell["same_as"] is not None for cell in told["cells"]].count(True) == 1
    assert any(note.startswith("calibration: entropy") for note in told["notes"])


def test_a_sweep_whose_axes_all_did_something_has_no_line(store, show):
    path = store(ran(BASELINE, "float"), static(MINMAX, "one"), static(ENTROPY, "other"))
    assert "bit for bit" not in show(path)


def test_no_more_than_two_axes_are_told_on_the_first_screen(store, show):
    cells = [
        ran(make_cell("dynamic", bits, backend=f"backend {number}"), "same")
        for number, pair in enumerate((("w8a8", "w7a8"), ("w6a8", "w5a8"), ("w4a8", "w3a8")))
        for bits in pair
    ]
    first = show(store(*cells), full=False)
    assert first.count("bit for bit") == 2
    assert "1 more axis changed nothing: --full" in first


def test_a_long_list_of_cells_says_how_many_are_left_out(store, show):
    cells = [static(Calibration(seed=seed), "same", device=ONE_THREAD) for seed in range(25)]
    assert "4 more" in show(store(*cells), width=120)
