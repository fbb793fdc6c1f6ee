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
