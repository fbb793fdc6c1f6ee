import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from stored_cells import failed, make_cell, quality

from qb_cluster.contracts import Calibration
from qb_cluster.report.analysis import analyse
from qb_cluster.report.bits import DB_PER_BIT, bit_series, fit_line
from qb_cluster.report.bits_plot import draw
from qb_cluster.report.document import build
from qb_cluster.store.reading import read_results, read_run

ALL = np.arange(2, 17)


def sweep(scheme="weight_only", form="w{}", widths=ALL, *, slope=DB_PER_BIT, **options):
    cells = [make_cell(scheme, form.format(bits), **options) for bits in widths]
    return [
        (cell, quality(cell, sqnr_db=float(slope * bits + 3)))
        for cell, bits in zip(cells, widths, strict=True)
    ]


def series(store, *rows):
    return bit_series(read_results(store(*rows)))


def labels(store, *rows):
    return [one.label for one in series(store, *rows)]


def test_a_uniform_quantizer_gains_6_02_decibels_a_bit_and_the_fit_finds_it():
    values = np.random.default_rng(0).uniform(-1, 1, 200_000)
    sqnr = []
    for bits in ALL:
        step = 2 / 2**bits
        rounded = (np.floor(values / step) + 0.5) * step
        sqnr.append(10 * np.log10(np.sum(values**2) / np.sum((values - rounded) ** 2)))
    fit = fit_line(ALL, np.array(sqnr))
    assert (fit.low, fit.high) == (2, 16)
    assert fit.db_per_bit == pytest.approx(6.0206, abs=0.01)
    assert abs(fit.db_per_bit - DB_PER_BIT) < 4 * fit.stderr + 1e-3


def test_the_slope_and_its_standard_error_are_those_of_least_squares():
    noise = np.random.default_rng(1).normal(0, 0.2, len(ALL))
    y = 5 * ALL + 1 + noise
    fit = fit_line(ALL, y)
    coefficients, covariance = np.polyfit(ALL, y, 1, cov=True)
    assert fit.db_per_bit == pytest.approx(coefficients[0])
    assert fit.stderr == pytest.approx(np.sqrt(covariance[0, 0]))
    assert fit.intercept_db == pytest.approx(coefficients[1])


def test_a_floor_of_other_noise_and_a_steep_start_are_left_out_of_the_fit():
    line = DB_PER_BIT * ALL - 4.0
    floored = -10 * np.log10(10 ** (-line / 10) + 10**-4.3)
    fit = fit_line(ALL, floored)
    assert fit.high <= 8
    assert fit.db_per_bit == pytest.approx(DB_PER_BIT, abs=0.5)
    steep = np.where(ALL < 4, line - 12 * (4 - ALL), line)
    assert (fit_line(ALL, steep).low, fit_line(ALL, steep).high) == (4, 16)


@pytest.mark.parametrize(
    "sqnr",
    [
        [40.0, 40.1, 40.0, 40.1],  # flat: something else makes the noise
        [10.0, 50.0, 55.0, 80.0],  # no line
        [10.0, 16.0, 22.0, np.inf],  # equal outputs are no point of a line
        [10.0, 16.0, 22.0, np.nan],
    ],
)
def test_where_there_is_no_line_none_is_fitted(sqnr):
    assert fit_line(np.array([4, 5, 6, 7]), np.array(sqnr)) is None


def test_three_widths_make_a_series_and_two_do_not(store):
    [one] = series(store, *sweep(widths=[8, 2, 4]), *sweep("fp8", widths=[8, 4]))
    assert one.bits.tolist() == [2, 4, 8]
    assert one.label == "weight_only"
    assert one.sqnr_db == pytest.approx(DB_PER_BIT * one.bits + 3)
    assert one.baseline_value == pytest.approx(350 / 360)
    assert one.fit is None  # three points lie near some line whatever the law


def test_four_widths_are_fitted(store):
    [one] = series(store, *sweep(widths=[2, 3, 4, 8]))
    assert one.fit.db_per_bit == pytest.approx(DB_PER_BIT)
    assert (one.fit.low, one.fit.high) == (2, 8)


def test_a_width_between_others_that_has_no_number_is_missing(store):
    rows = sweep(widths=[2, 4, 6, 8, 10])
    for at in (2, 4):  # one between, one at the end
        cell = rows[at][0]
        rows[at] = (cell, failed(cell, "crashed", "no end"))
    [one] = series(store, *rows)
    assert one.bits.tolist() == [2, 4, 8]
    assert one.missing.tolist() == [6]


def test_a_cell_that_quantized_a_part_is_a_cross_beside_the_line_that_says_how_much(store):
    rows = sweep(widths=[2, 4, 6, 8])
    for at, share in ((1, 0.279), (3, 0.5)):
        cell = rows[at][0]
        rows[at] = (cell, quality(cell, sqnr_db=90.0, covered_share=share))
    [one] = series(store, *rows)
    assert one.bits.tolist() == [2, 6]
    assert one.missing.tolist() == [4]  # no line crosses it
    assert one.fit is None
    points = [(p.bits, p.sqnr_db, p.words) for p in one.partial]
    assert points == [(4, 90.0, "partial 27 %"), (8, 90.0, "partial 50 %")]
    written = list(ET.fromstring(draw([one])).itertext())
    assert written.count("partial 27 %") == 2  # in both panels


def test_cells_that_are_not_ok_are_no_points(store):
    rows = sweep(widths=[2, 4, 8])
    cell, _ = rows[1]
    bad = (cell, failed(cell, "kernel_mismatch", "garbage", values={"sqnr_db": 1.0}))
    assert labels(store, rows[0], bad, rows[2]) == []


def test_a_series_is_named_by_what_sets_it_apart(store):
    rows = [
        *sweep("weight_only"),
        *sweep("weight_only[granularity=per_tensor]"),
        *sweep("static", "w{0}a{0}", seed=0),
        *sweep("static", "w{0}a{0}", seed=1),
    ]
    assert labels(store, *rows) == [
        "static · w = a · seed 0",
        "static · w = a · seed 1",
        "weight_only",
        "weight_only[granularity=per_tensor]",
    ]


def test_observers_and_percentiles_set_series_apart(store):
    rows = [
        row
        for calibration in (
            Calibration(observer="mse"),
            Calibration(observer="percentile", percentile=99.0),
            Calibration(observer="percentile", percentile=99.9),
        )
        for row in sweep("static", "w{0}a{0}", calibration=calibration)
    ]
    assert labels(store, *rows) == [
        "static · w = a · mse",
        "static · w = a · percentile · percentile 99",
        "static · w = a · percentile · percentile 99.9",
    ]


def test_one_width_varies_while_the_other_stays(store):
    rows = [*sweep("static", "w{}a8", [2, 3, 4]), *sweep("static", "w4a{}", [10, 12, 16])]
    found = {one.label: one.bits.tolist() for one in series(store, *rows)}
    assert found == {"static · a8": [2, 3, 4], "static · w4": [8, 10, 12, 16]}


def test_native_and_simulated_cells_make_one_series_unless_both_were_asked_for(store):
    simulated = sweep(widths=[2, 3, 4, 8], execution="simulated")
    native = sweep(widths=[4, 8, 16], execution="native")
    [one] = series(store, *simulated[:2], *native)
    assert one.simulated.tolist() == [True, True, False, False, False]
    both = series(store, *simulated[2:])
    assert [(s.label, s.bits.tolist()) for s in both] == [
        ("weight_only · native", [4, 8, 16]),
        ("weight_only · simulated", [2, 3, 4, 8]),
    ]


def test_the_report_puts_the_slope_beside_the_law(store):
    rows = [*sweep(), *sweep("dynamic", "w{}a8", slope=0.0)]
    [table] = [
        table
        for table in build(analyse(read_run(store(*rows)))).tables
        if table.title.startswith("SQNR gained per bit")
    ]
    assert table.rows == (
        ("digits-cnn", "dynamic · a8", "no line", "6.02", "–", "2–16 bits"),
        ("digits-cnn", "weight_only", "6.02 ± 0.00", "6.02", "2–16 bits", "2–16 bits"),
    )


def test_the_picture_names_each_model_and_series_and_the_law(store):
    rows = [*sweep(), *sweep("static", "w{}a8"), *sweep(model="cost_$2^8$_net")]
    picture = draw(bit_series(read_results(store(*rows))))
    root = ET.fromstring(picture)
    written = "\n".join(text.strip() for text in root.itertext())
    assert root.tag.endswith("svg")
    for text in ("digits-cnn", "cost_$2^8$_net", "static · a8", "weight_only", "6.02 dB per bit"):
        assert text in written, text


def test_the_same_series_give_the_same_bytes(store):
    found = series(store, *sweep())
    assert draw(found) == draw(found)


def test_what_is_unknown_or_infinite_leaves_a_gap_in_the_picture(store):
    [one] = series(store, *sweep())
    gaps = replace(
        one,
        sqnr_db=np.full(len(one.bits), np.inf),
        value=np.full(len(one.bits), np.nan),
        baseline_value=float("nan"),
        fit=None,
    )
    assert draw([gaps], "png").startswith(b"\x89PNG")
