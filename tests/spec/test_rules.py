"""A rule that matches nothing is an error; one that matches something is not."""

import pytest

from qb_cluster.contracts import Bits


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{bits: w5}", "7:18: no bits 'w5' in this sweep; it has w8, w4, w2, w8a8"),
        ("{bits: [w8, w5]}", "7:23: no bits 'w5' in this sweep; it has w8, w4, w2, w8a8"),
        ("{bits: 'w9*'}", "7:18: no bits 'w9*' in this sweep; it has w8, w4, w2, w8a8"),
        (
            "{model: stub_plugins:smal}",
            "7:19: no model 'stub_plugins:smal' in this sweep; did you mean 'stub_plugins:small'?",
        ),
        ("{device: board}", "7:20: no device 'board' in this sweep; it has cpu"),
        (
            "{scheme: static, bits: w8}",
            "7:11: it matches nothing: no scheme that it names takes bits that it names",
        ),
        ("{execution: auto}", "7:23: no execution 'auto': a cell is native, simulated or"),
        ("{execution: native, bits: w4}", "7:11: it matches nothing: no such cell is native"),
        ("{execution: [unsupported, native], bits: w4}", "7:11: it matches nothing: no such cell"),
    ],
)
@pytest.mark.parametrize("kind", ["exclude", "override"])
def test_a_rule_that_matches_nothing_says_which_part(refusal, spec_text, rule, message, kind):
    if kind == "exclude":
        (line,) = refusal(f"{spec_text}exclude: [{rule}]\n")
    else:
        addition = f"overrides:\n  - set: {{timeout_s: 9}}\n    when: {rule}\n"
        (line,) = refusal(spec_text + addition)
        place, _, rest = message.partition(": ")
        column = int(place.partition(":")[2]) - len("exclude: [") + len("    when: ")
        message = f"9:{column}: {rest}"
    assert line.startswith(message)


@pytest.mark.parametrize(
    "rule",
    [
        "{bits: w8}",
        "{bits: 'w*', model: '*:small'}",
        "{scheme: static, bits: 'w8*'}",
        "{execution: native}",
        "{execution: simulated, bits: w4}",
        "{execution: unsupported}",
        "{device: c?u, dataset: [stub_plugins:data]}",
        "{backend: '*Half'}",
    ],
)
def test_a_rule_that_matches_something_is_kept(load, spec_text, rule):
    spec = load(f"{spec_text}exclude: {rule}\noverrides: {{when: {rule}, set: {{timeout_s: 9}}}}\n")
    assert len(spec.exclude) == 1
    assert spec.overrides[0].when == spec.exclude[0]


def test_labels_with_brackets_match_themselves(load, spec_text):
    entry = "{name: 'stub_plugins:small', options: {width: 8}}"
    spec = load(
        spec_text.replace("stub_plugins:small", entry)
        + "exclude: [{model: 'stub_plugins:small[width=8]'}]\n"
    )
    (match,) = spec.exclude
    assert match.accepts("model", "stub_plugins:small[width=8]")
    assert not match.accepts("model", "stub_plugins:large")


def test_an_execution_that_only_an_override_brings_can_be_excluded(load, spec_text):
    text = spec_text.replace("w4, w2, ", "") + (
        "overrides: [{when: {bits: w8}, set: {execution: simulated}}]\n"
        "exclude: [{execution: simulated}]\n"
    )
    assert load(text).exclude


def test_an_override_may_be_for_included_cells_alone(load, spec_text):
    load(
        f"{spec_text}include: [{{bits: w6}}]\n"
        "overrides: [{when: {bits: w6}, set: {timeout_s: 9}}]\n"
    )


def test_an_exclude_for_included_cells_alone_matches_nothing(refusal, spec_text):
    (line,) = refusal(f"{spec_text}include: [{{bits: w6}}]\nexclude: [{{bits: w6}}]\n")
    assert line.startswith("8:18: no bits 'w6' in this sweep")


def test_axes_that_meet_in_no_product_match_nothing(refusal, spec_text):
    (line,) = refusal(
        f"{spec_text}include:\n  - {{bits: w6}}\n  - {{model: 'json:third', bits: w8}}\n"
        "overrides: [{when: {bits: w6, model: 'json:third'}, set: {timeout_s: 9}}]\n"
    )
    assert line == "10:20: it matches nothing: no cell has all of these at once"


def test_a_backend_that_cannot_say_what_it_supports_is_blamed_where_it_is_asked(refusal, spec_text):
    (line,) = refusal(spec_text.replace("Half", "Undecided") + "exclude: {execution: native}\n")
    assert line.startswith("7:10: backend 'stub_plugins:Undecided' raised RuntimeError when asked")


CALIBRATED = "calibration: {observer: [minmax, percentile], percentile: [99, 99.9], seed: [0, 1]}\n"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{calibration: mse}", "8:25: no calibration 'mse' in this sweep; it has none, minmax, "),
        ("{calibration: 'percentile[98]'}", "8:25: no calibration 'percentile[98]' in this sweep"),
        (
            "{calibration: minmax, scheme: weight_only}",
            "8:11: it matches nothing: no scheme that it names takes bits that it names and is cal",
        ),
        (
            "{calibration: none, bits: w8a8}",
            "8:11: it matches nothing: no scheme that it names takes bits that it names and is cal",
        ),
        (
            "{calibration: minmax, execution: simulated}",
            "8:11: it matches nothing: no such cell is simulated",
        ),
    ],
)
def test_a_rule_for_a_calibration_that_is_not_there_matches_nothing(
    refusal, spec_text, rule, message
):
    (line,) = refusal(f"{spec_text}{CALIBRATED}exclude: [{rule}]\n")
    assert line.startswith(message)


@pytest.mark.parametrize(
    "calibration",
    ["minmax", "minmax[seed=1]", "percentile[99,seed=1]", "percentile*", "none", "*seed=1]"],
)
def test_a_rule_for_a_calibration_that_is_there_is_kept(load, spec_text, calibration):
    assert load(f"{spec_text}{CALIBRATED}exclude: {{calibration: '{calibration}'}}\n").exclude


def test_a_calibration_that_only_an_override_brings_can_be_matched(load, spec_text):
    load(
        f"{spec_text}overrides:\n"
        "  - {when: {bits: w8a8}, set: {calibration: {observer: mse}}}\n"
        "  - {when: {calibration: mse}, set: {calibration: {samples: 32}}}\n"
        "exclude: {calibration: 'mse[samples=32]'}\n"
    )


def test_the_bits_of_a_float_format_can_be_matched(load, refusal, spec_text):
    text = spec_text.replace("static", "static, fp16")
    load(f"{text}exclude: {{bits: w16a16}}\n")
    (line,) = refusal(f"{text}exclude: {{bits: w16a16, scheme: static}}\n")
    assert line.startswith("7:10: it matches nothing: no scheme that it names takes bits")


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("model_file")
def test_a_rule_knows_which_backends_do_not_take_a_model_file(load, refusal, spec_text):
    text = spec_text.replace("stub_plugins:large", "net.onnx").replace("w2, ", "")
    load(f"{text}exclude: {{execution: unsupported}}\n")
    (line,) = refusal(f"{text}exclude: {{execution: native, model: net.onnx}}\n")
    assert line.endswith("it matches nothing: no such cell is native")
    text = text.replace("Half", "Graphs")
    load(f"{text}exclude: {{execution: simulated}}\n")
    (line,) = refusal(f"{text}exclude: {{execution: simulated, model: net.onnx}}\n")
    assert line.endswith("it matches nothing: no such cell is simulated")


def test_cells_of_a_backend_that_is_not_installed_can_be_excluded(load, spec_text):
    text = spec_text.replace("Half", "Uninstalled")
    for execution in ("unsupported", "native"):  # another machine may have it
        assert load(f"{text}exclude: {{execution: {execution}}}\n").exclude


# Includes


def test_an_include_takes_what_it_leaves_out_from_the_sweep(load, spec_text):
    spec = load(f"{spec_text}include: {{bits: [w6, w6a6]}}\n")
    (product,) = spec.includes
    assert product.bits == (Bits(6), Bits(6, 6))
    assert product.model == spec.grid.model
    assert product.scheme == spec.grid.scheme


def test_an_include_may_bring_new_entries_and_name_old_ones_by_label(load, spec_text):
    text = spec_text.replace(
        "stub_plugins:small", "{name: 'stub_plugins:small', label: s, options: {w: 3}}"
    )
    spec = load(
        f"{text}include:\n  - model: [s, 'json:new']\n"
        "    scheme: {name: stub_plugins:coarse}\n    bits: w3\n"
        "    device: {name: cpu, threads: 4}\n    execution: [native, simulated]\n"
    )
    (product,) = spec.includes
    assert product.model[0] is spec.grid.model[0]
    assert [model.label for model in product.model] == ["s", "json:new"]
    assert product.scheme[0].scheme.granularity == "per_tensor"
    assert product.execution == ("native", "simulated")
    assert [d.threads for d in spec.devices] == [1, 4]


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ("{model: digits-cn}", "7:19: unknown model 'digits-cn'; did you mean 'digits-cnn'?"),
        ("{model: '__main__:net'}", "7:19: "),
        ("{bits: w1}", "7:18: 'w1': weights take 2–16 bits, not 1"),
        ("{bits: [w6, w6]}", "7:23: 'w6' is listed twice"),
        ("{scheme: static, bits: w6}", "7:20: scheme 'static' takes wNaM (like w8a8) and so none"),
        ("{scheme: weight_only, bits: [w6, w6a6]}", "7:44: no scheme here takes w6a6: that is for"),
        ("{bits: w8}", "7:11: it adds nothing: the sweep has all of these cells without it"),
        ("{device: tpu}", "7:20: unknown device 'tpu'; known: cpu"),
        ("{execution: fast}", "7:23: 'execution' should be 'auto', 'native' or 'simulated'"),
        ("{model: []}", "7:19: 'model' is empty; list at least one"),
        (
            "{model: {name: 'json:x', label: 'stub_plugins:small'}}",
            "7:19: another model is called 'stub_plugins:small' already",
        ),
    ],
)
def test_an_include_that_adds_no_cell_or_cannot_be_made_is_an_error(
    refusal, spec_text, include, message
):
    lines = refusal(f"{spec_text}include: [{include}]\n")
    assert any(line.startswith(message) for line in lines)


def test_an_include_of_bits_brings_no_float_format_that_has_others(load, spec_text):
    text = spec_text.replace("static", "static, fp16, fp8") + "include: {bits: %s}\n"
    labels = {bits: load(text % bits).includes[0].labels("scheme") for bits in ("w6", "w6a6")}
    assert labels == {"w6": ("weight_only",), "w6a6": ("static",)}
    (product,) = load(text.replace("include: {", "include: {scheme: fp16, ") % "w16a16").includes
    assert product.labels("bits") == ("w16a16",)


def test_an_include_of_a_float_format_needs_no_bits(load, spec_text):
    (product,) = load(f"{spec_text}include: {{scheme: bf16}}\n").includes
    assert product.bits_of(product.scheme[0]) == (Bits(16, 16),)


def test_an_include_of_a_calibration_is_for_static_schemes_and_inherits_the_other_keys(
    load, spec_text
):
    (product,) = load(
        f"{spec_text}calibration: {{samples: [8, 9]}}\n"
        "include: {calibration: {observer: mse}}\n"
    ).includes
    assert product.labels("scheme") == ("static",)
    assert product.labels("calibration") == ("mse[samples=8]", "mse[samples=9]")


def test_an_include_may_bring_back_what_a_rule_drops(load, spec_text):
    spec = load(f"{spec_text}exclude: {{bits: 'w8*'}}\ninclude: {{bits: w8}}\n")
    assert spec.includes[0].bits == (Bits(8),)


def test_an_include_beside_what_a_rule_drops_adds_nothing(refusal, spec_text):
    (line,) = refusal(f"{spec_text}exclude: {{bits: w8}}\ninclude: {{bits: w4}}\n")
    assert line.startswith("8:10: it adds nothing")


def test_an_include_may_bring_back_what_is_dropped_for_what_an_override_makes_of_it(
    load, spec_text
):
    load(
        f"{spec_text}overrides: [{{when: {{bits: w8}}, set: {{execution: simulated}}}}]\n"
        "exclude: {execution: simulated, bits: w8}\ninclude: {bits: w8}\n"
    )
