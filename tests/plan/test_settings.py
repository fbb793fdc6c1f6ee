"""Overrides, and which float baseline a cell is compared with."""

from qb_cluster.contracts import Latency
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.plan import expected_size


def by_bits(cells, model="stub_plugins:small"):
    return {str(c.bits or "f32"): c for c in cells if c.model.label == model}


def override(when, change):
    return f"  - {{when: {{{when}}}, set: {{{change}}}}}\n"


def test_an_override_changes_the_cells_it_matches_and_no_other(cells_of, spec_text):
    cells = cells_of(spec_text + "overrides:\n" + override("bits: w8", "timeout_s: 9"))
    for cell in cells:
        assert cell.timeout_s == (9 if str(cell.bits) == "w8" else 600)


def test_a_stage_past_its_deadline_is_tried_again_only_where_that_is_asked_for(cells_of, spec_text):
    assert {c.timeout_retries for c in cells_of(spec_text)} == {0}
    cells = cells_of(
        spec_text
        + "timeout_retries: 1\noverrides:\n"
        + override("bits: w8", "timeout_retries: 3")
        + override("model: '*small'", "timeout_retries: 0")
    )
    small, large = by_bits(cells), by_bits(cells, "stub_plugins:large")
    assert {c.timeout_retries for c in small.values()} == {0}
    assert (large["f32"].timeout_retries, large["w8"].timeout_retries) == (1, 3)
    assert large["w4"].timeout_retries == 1


def test_later_overrides_win_field_by_field(cells_of, spec_text):
    cells = cells_of(
        spec_text
        + "measure: {latency: {seed: 7}}\noverrides:\n"
        + override("model: '*'", "measure: {batch_size: 3, latency: {min_runs: 5}}, timeout_s: 9")
        + override("model: '*small'", "measure: {batch_size: 4, latency: {min_s: 2}}")
    )
    small, large = by_bits(cells)["w8"], by_bits(cells, "stub_plugins:large")["w8"]
    assert small.measure.latency == Latency(seed=7, min_runs=5, min_s=2.0)
    assert large.measure.latency == Latency(seed=7, min_runs=5)
    assert (small.measure.batch_size, large.measure.batch_size) == (4, 3)
    assert small.timeout_s == large.timeout_s == 9


def test_latency_is_switched_off_and_on_again(cells_of, spec_text):
    cells = by_bits(
        cells_of(
            spec_text
            + "overrides:\n"
            + override("bits: 'w8*'", "measure: {latency: false}")
            + override("bits: w8a8", "measure: {latency: true}")
        )
    )
    assert not cells["w8"].is_timed
    assert cells["w8a8"].is_timed


def test_an_override_of_the_execution_is_seen_by_the_rules_after_it(cells_of, spec_text):
    cells = by_bits(
        cells_of(
            spec_text
            + "overrides:\n"
            + override("bits: w8", "execution: simulated")
            + override("execution: native", "timeout_s: 1")
            + override("execution: simulated", "timeout_s: 2")
            + "exclude: {execution: simulated, bits: w4}\n"
        )
    )
    assert cells["w8"].execution == "simulated"
    assert (cells["w8"].timeout_s, cells["w8a8"].timeout_s, cells["w2"].timeout_s) == (2, 1, 600)
    assert "w4" not in cells


def test_exclude_by_execution_drops_what_the_plan_would_show(cells_of, spec_text):
    cells = cells_of(spec_text + "exclude: {execution: [unsupported, simulated]}\n")
    assert {cell.execution for cell in cells} == {"native"}
    assert set(by_bits(cells)) == {"f32", "w8", "w8a8"}


def test_calibration_overrides_reach_static_cells(cells_of, spec_text):
    cells = by_bits(
        cells_of(spec_text + "overrides:\n" + override("bits: '*'", "calibration: {seed: 3}"))
    )
    assert cells["w8a8"].calibration.seed == 3
    assert cells["w8"].calibration is None


CALIBRATED = (
    "calibration: {observer: [minmax, percentile, mse], percentile: [99, 99.9], seed: [0, 1]}\n"
)
LABELS = [
    "minmax",
    "minmax[seed=1]",
    "percentile[99]",
    "percentile[99,seed=1]",
    "percentile[99.9]",
    "percentile[99.9,seed=1]",
    "mse",
    "mse[seed=1]",
]


def calibrations(cells):
    return [
        calibration_label(c.calibration)
        for c in cells
        if c.model.label == "stub_plugins:small" and str(c.bits) == "w8a8"
    ]


def test_lists_of_calibration_settings_are_an_axis_of_static_cells_alone(load, cells_of, spec_text):
    text = spec_text + CALIBRATED
    cells = cells_of(text)
    assert calibrations(cells) == LABELS
    assert len(by_bits(cells)) == 5  # one of each other cell
    assert len(cells) == len({c.cell_id for c in cells}) == 2 * (4 + len(LABELS))
    assert expected_size(load(text)) == len(cells)


def test_an_observer_without_a_percentile_does_not_know_the_sweeps(cells_of, spec_text):
    alone = {c.cell_id for c in cells_of(spec_text)}
    assert alone <= {c.cell_id for c in cells_of(spec_text + CALIBRATED)}


def test_rules_match_calibrations_as_the_plan_shows_them(cells_of, spec_text):
    text = spec_text + CALIBRATED
    assert calibrations(cells_of(text + "exclude: {calibration: '*seed=1]'}\n")) == LABELS[::2]
    assert calibrations(cells_of(text + "exclude: {calibration: 'percentile*'}\n")) == [
        label for label in LABELS if "percentile" not in label
    ]
    cells = cells_of(text + "exclude: {calibration: none}\n")
    assert {str(c.bits) for c in cells if not c.is_baseline} == {"w8a8"}


def test_an_override_that_makes_calibrations_alike_leaves_one_cell(cells_of, spec_text):
    change = override("calibration: 'm*'", "calibration: {observer: percentile, seed: 1}")
    cells = cells_of(spec_text + CALIBRATED + "overrides:\n" + change)
    assert calibrations(cells) == [
        "percentile[99,seed=1]",
        "percentile[99.9,seed=1]",
        "percentile[99]",
        "percentile[99.9]",
    ]
    assert len({c.cell_id for c in cells}) == len(cells)


def test_the_baseline_is_one_for_all_calibrations(cells_of, spec_text):
    change = override("calibration: mse", "timeout_s: 9, measure: {latency: false}")
    cells = cells_of(spec_text + CALIBRATED + "overrides:\n" + change)
    assert len(baselines(cells)) == 2
    assert all(c.timeout_s == 600 and c.is_timed for c in baselines(cells))


def test_layers_are_measured_in_simulated_cells_alone(cells_of, spec_text):
    cells = cells_of(spec_text + "measure: {layers: true}\n")
    for cell in cells:
        assert cell.measure.layers == (cell.execution == "simulated")
    before = {c.cell_id for c in cells_of(spec_text) if c.execution != "simulated"}
    assert before == {c.cell_id for c in cells if c.execution != "simulated"}


def test_an_override_may_ask_for_layers(cells_of, spec_text):
    cells = cells_of(
        spec_text
        + "execution: simulated\noverrides:\n"
        + override("bits: w4", "measure: {layers: true}")
    )
    assert {str(c.bits) for c in cells if c.measure.layers} == {"w4"}
    assert len(baselines(cells)) == 2


def test_included_cells_come_once_after_the_grid_of_their_group(cells_of, spec_text):
    cells = cells_of(
        spec_text + "include:\n  - {model: 'stub_plugins:small', bits: [w8, w6]}\n"
        "  - {bits: w6, model: 'json:new'}\n"
    )
    assert list(by_bits(cells)) == ["f32", "w8", "w4", "w2", "w8a8", "w6"]
    assert list(by_bits(cells, "json:new")) == ["f32", "w6"]
    assert "w6" not in by_bits(cells, "stub_plugins:large")


def test_an_included_cell_is_not_excluded(cells_of, spec_text):
    text = spec_text + "exclude: {bits: 'w8*'}\ninclude: {bits: w8, model: stub_plugins:small}\n"
    assert set(by_bits(cells_of(text))) == {"f32", "w4", "w2", "w8"}
    assert set(by_bits(cells_of(text), "stub_plugins:large")) == {"f32", "w4", "w2"}


# Baselines


def baselines(cells):
    return [c for c in cells if c.is_baseline]


def test_native_and_simulated_cells_share_one_baseline_which_is_timed(cells_of, spec_text):
    cells = cells_of(spec_text.replace("stub_plugins:large, ", ""))
    assert len({c.baseline_cell_id for c in cells if c.model.label == "stub_plugins:small"}) == 1
    assert all(c.is_timed for c in baselines(cells))


def test_a_latency_protocol_of_some_cells_needs_no_second_baseline(cells_of, spec_text):
    cells = cells_of(
        spec_text + "overrides:\n" + override("bits: w8", "measure: {latency: {min_runs: 3}}")
    )
    assert len(baselines(cells)) == 2
    assert baselines(cells)[0].measure.latency == Latency()


def test_a_latency_protocol_of_a_whole_group_is_its_baselines_too(cells_of, spec_text):
    cells = cells_of(
        spec_text
        + "overrides:\n"
        + override("model: '*small'", "measure: {latency: {min_runs: 3}}, timeout_s: 9")
        + override("bits: w8", "timeout_s: 8")
    )
    small, large = baselines(cells)
    assert small.measure.latency == Latency(min_runs=3)
    assert small.timeout_s == 9
    assert large.measure.latency == Latency()


def test_cells_measured_differently_have_baselines_measured_like_them(cells_of, spec_text):
    cells = cells_of(
        spec_text
        + "overrides:\n"
        + override("bits: w4", "measure: {examples: 10}")
        + override("scheme: static", "measure: {metric: 'json:loads'}")
        + override("execution: unsupported", "measure: {batch_size: 1}")
    )
    planned = {c.cell_id: c for c in baselines(cells)}
    assert len(planned) == 2 * 3  # none for the unsupported cell alone
    for cell in cells:
        if cell.execution is not None:
            ours, theirs = cell.measure, planned[cell.baseline_cell_id].measure
            assert (ours.metric, ours.batch_size, ours.examples, ours.confidence) == (
                theirs.metric,
                theirs.batch_size,
                theirs.examples,
                theirs.confidence,
            )
