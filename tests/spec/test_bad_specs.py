"""Every mistake is told with its line and column, and what to write instead."""

import pytest


def test_an_unknown_model_names_the_nearest_known_one(refusal, spec_text):
    (line,) = refusal(spec_text.replace("stub_plugins:small", "digits-cn"))
    assert line.startswith("2:10: unknown model 'digits-cn'; did you mean 'digits-cnn'?")


def test_a_misspelt_import_path_is_told_in_its_place_without_an_import(refusal, spec_text):
    text = spec_text.replace("stub_plugins:large", "user_models_of_specs:nett")
    (line,) = refusal(text)
    assert line.startswith("2:30: model 'user_models_of_specs:nett': ")
    assert line.endswith(
        "user_models_of_specs.py has no 'nett'; did you mean 'user_models_of_specs:net'?"
    )
    (line,) = refusal(text.replace("specs:nett", "spec:net"))
    assert line.startswith("2:30: model 'user_models_of_spec:net': no module")
    assert line.endswith("did you mean 'user_models_of_specs:net'?")


def test_a_misspelt_key_names_the_nearest_known_one_and_nothing_else(refusal, spec_text):
    assert refusal(spec_text.replace("backends", "backend")) == [
        "6:1: unknown key 'backend'; did you mean 'backends'?"
    ]


def test_a_key_like_no_other_gets_the_list_of_known_ones(refusal, spec_text):
    (line,) = refusal(spec_text + "zzz: 1\n")
    assert line.startswith("7:1: unknown key 'zzz'; known: backends, bits,")


@pytest.mark.parametrize(
    ("written", "place"), [("[w8, w1a0]", "5:12"), ("w1a0", "5:7"), ("[w8, w17]", "5:12")]
)
def test_bits_out_of_range_name_the_range(refusal, spec_text, written, place):
    (line,) = refusal(spec_text.replace("[w8, w4, w2, w8a8]", written))
    assert line.startswith(f"{place}: '")
    assert "weights take 2–16 bits, not 1" in line


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("8", "write w8"),
        ("int8", "write wN (w4) or wNaM (w4a8)"),
        ("true", "write wN (w4) or wNaM (w4a8)"),
        ("{w: 8}", "write wN (w4) or wNaM (w4a8)"),
        ("w8a32", "activations take 2–16 bits, not 32"),
    ],
)
def test_bits_of_another_form_are_told_how_to_write_them(refusal, spec_text, written, remedy):
    (line,) = refusal(spec_text.replace("w4", written))
    assert line.startswith("5:12: ")
    assert remedy in line


@pytest.mark.parametrize("key", ["models", "datasets", "schemes", "bits", "backends"])
@pytest.mark.parametrize("nothing", ["[]", ""])
def test_an_empty_axis_is_named(refusal, spec_text, key, nothing):
    lines = spec_text.splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith(key))
    lines[number] = f"{key}: {nothing}"
    (line,) = refusal("\n".join(lines))
    assert line.startswith(f"{number + 1}:")
    assert line.endswith(f"'{key}' is empty; list at least one")


@pytest.mark.parametrize("key", ["sweep", "models", "datasets", "schemes", "bits", "backends"])
def test_a_missing_key_is_named(refusal, spec_text, key):
    text = "".join(x for x in spec_text.splitlines(keepends=True) if not x.startswith(key))
    assert refusal(text) == [f"1:1: '{key}' is missing"]


def test_all_mistakes_come_at_once_in_file_order(refusal, spec_text):
    text = (
        spec_text.replace("stub_plugins:small", "nowhere:small").replace("w4", "w1")
        + "timeout_s: -1\nmeasure: {metric: acuracy, batch_size: many, latency: {min_run: 3}}\n"
        "calibration: {observer: msq, seed: -1}\ndevices: gpu\nexecution: nativ\n"
    )
    lines = refusal(text)
    assert [line.partition(": ")[0] for line in lines] == [
        "2:10", "5:12", "7:12", "8:19", "8:40", "8:56", "9:25", "9:36", "10:10", "11:12",
    ]  # fmt: skip
    assert "no module 'nowhere'" in lines[0]
    assert "unknown metric 'acuracy'; did you mean 'accuracy'" in lines[3]
    assert "'batch_size' should be a valid integer, not 'many'" in lines[4]
    assert "unknown key 'min_run'; did you mean 'min_runs'?" in lines[5]
    assert lines[8].endswith("unknown device 'gpu'; known: cpu")


def test_a_message_stays_short_and_on_one_line_whatever_it_quotes(refusal, spec_text):
    (line,) = refusal(spec_text + '"a\\nb\\e[31m": 1\n')
    assert line.startswith("7:1: unknown key 'a\\nb\\x1b[31m'")
    (line,) = refusal(spec_text + "k" * 900 + ": 1\n")
    assert len(line) < 500


def test_more_mistakes_than_fit_a_screen_are_counted(refusal, spec_text):
    lines = refusal(spec_text.replace("w4", ", ".join(f"w{n}" for n in range(20, 45))))
    assert len(lines) == 11
    assert lines[-1] == "… and 15 more"


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "x" * 101, "-rf", "ü"])
def test_a_sweep_has_a_name_that_can_name_a_folder(refusal, spec_text, name):
    (line,) = refusal(spec_text.replace("trial", f"'{name}'"))
    assert line.startswith("1:8: 'sweep' ")


@pytest.mark.parametrize(
    ("text", "addition", "place"),
    [
        ("{name: weight_only, label: float}", "", "4:11"),
        ("weight_only", "include: [{scheme: {name: dynamic, label: float}, bits: w8a8}]\n", "7:20"),
    ],
)
def test_no_scheme_is_called_what_tables_call_the_baseline(
    refusal, spec_text, text, addition, place
):
    (line,) = refusal(spec_text.replace("weight_only", text) + addition)
    assert line == (
        f"{place}: 'float' is what tables call the float baseline; give this scheme another label"
    )


@pytest.mark.parametrize(
    ("axis", "one", "two"),
    [
        ("models", "{name: stub_plugins:small, label: x}", "{name: stub_plugins:large, label: x}"),
        ("datasets", "{name: stub_plugins:data, label: x}", "{name: digits, label: x}"),
        ("schemes", "{name: weight_only, label: x}", "{name: static, label: x}"),
        ("backends", "{name: stub_plugins:Half, label: x}", "{name: tflite, label: x}"),
        ("devices", "{name: x, labels: {a: b}}", "{name: x, labels: {a: c}}"),
    ],
)  # fmt: skip
def test_two_things_on_one_axis_never_have_one_label(refusal, spec_text, axis, one, two):
    lines = [line for line in spec_text.splitlines() if not line.startswith(axis)]
    (line,) = refusal("\n".join([*lines, f"{axis}: [{one}, {two}]"]))
    column = len(f"{axis}: [{one}, ") + 1
    what = "another name" if axis == "devices" else "a label"
    name = axis.removesuffix("s")
    start = f"{len(lines) + 1}:{column}"
    assert line == f"{start}: another {name} is called 'x' already; give this one {what}"


@pytest.mark.parametrize(
    ("first", "second", "place"),
    [
        ("", "{name: json:dumps, label: accuracy}", "8:46"),
        ("measure: {metric: json:dumps}", "{name: json:loads, label: json:dumps}", "9:46"),
    ],
)
def test_two_metrics_never_have_one_label(refusal, spec_text, first, second, place):
    rule = f"- {{when: {{bits: w8}}, set: {{measure: {{metric: {second}}}}}}}"
    (line,) = refusal("\n".join([spec_text.rstrip(), *filter(None, [first]), "overrides:", rule]))
    assert line.startswith(f"{place}: another metric is called '")
    assert line.endswith("already; give this one a label")


def test_an_override_of_something_else_names_no_metric(load, spec_text):
    own = "measure: {metric: {name: json:dumps, label: accuracy}}\n"
    load(
        f"{spec_text}{own}overrides: [{{when: {{bits: w8}}, set: {{measure: {{examples: 5}}}}}}]\n"
    )


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("timeout_s: 0", "7:12: 'timeout_s' should be greater than 0, not 0"),
        ("timeout_s: '60'", "7:12: 'timeout_s' should be a valid number, not '60'"),
        ("timeout_s: true", "7:12: 'timeout_s' should be a valid number, not True"),
        ("timeout_s: 1e300", "7:12: 'timeout_s' should be less than or equal to 2592000"),
        ("max_cells: 0", "7:12: 'max_cells' should be greater than or equal to 1, not 0"),
        ("devices: [{name: cpu, threads: 0}]", "7:32: 'threads' should be greater than or equal"),
        ("devices: [{name: cpu, threads: 1025}]", "7:32: 'threads' should be less than or equal"),
        ("devices: [{threads: 2}]", "7:11: 'name' is missing"),
        ("calibration: {samples: 0}", "7:24: 'samples' should be greater than or equal to 1"),
        ("calibration:", "7:1: 'calibration' is empty; give it a value, or leave the key out"),
        ("calibration: 5", "7:14: 'calibration' should be a valid dictionary"),
        ("measure: {confidence: 95}", "7:23: 'confidence' should be less than 1, not 95"),
        ("measure: {latency: fast}", "7:20: 'latency' should be a valid boolean, not 'fast'"),
        ("measure: {examples: 0}", "7:21: 'examples' should be greater than or equal to 1"),
        ("exclude: [{}]", "7:11: name an axis to match: model, dataset, scheme, bits, backend"),
        ("include: [{}]", "7:11: name an axis to add to: model, dataset, scheme, bits, backend"),
        ("exclude: [{modle: x}]", "7:12: unknown key 'modle'; did you mean 'model'?"),
        ("exclude: [{bits: 8}]", "7:18: write w8"),
        ("overrides: [{set: {timeout_s: 1}}]", "7:13: 'when' is missing"),
        ("overrides: [{when: {bits: w8}, set: {}}]", "7:37: name a setting: calibration, measure"),
        ("overrides: [{when: {bits: w8}, set: {timeout: 1}}]", "7:38: unknown key 'timeout'; did"),
    ],
)
def test_a_wrong_setting_is_told_what_it_takes(refusal, spec_text, addition, message):
    (line,) = refusal(f"{spec_text}{addition}\n")
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("stub_plugins:failing_backend", "raised ValueError: the driver is missing and more of it"),
        ("stub_plugins:not_a_backend", "lacks name, requires, distributions, support, convert"),
        ("stub_plugins:nothing", "cannot be imported: AttributeError"),
        ("stub plugins:Half", "is no import path; write package.module:callable"),
        ("{name: 'stub_plugins:Anything', options: {flavor: x}}", "unexpected keyword argument"),
    ],
)
def test_a_backend_that_cannot_be_made_is_told_why(refusal, spec_text, entry, message):
    (line,) = refusal(spec_text.replace("stub_plugins:Half", f"stub_plugins:Half, {entry}"))
    assert line.startswith("6:31: ")
    assert message in line


def test_what_is_no_scheme_is_told_so(refusal, spec_text):
    (line,) = refusal(spec_text.replace("static", "stub_plugins:not_a_scheme"))
    assert line.startswith("4:24: scheme 'stub_plugins:not_a_scheme' gives str; it has to return")


def test_the_name_inside_a_mapping_is_where_the_mistake_is(refusal, spec_text):
    text = spec_text.replace("[stub_plugins:data]", "\n  - label: d\n    name: digit\n")
    (line,) = refusal(text)
    assert line.startswith("5:11: unknown dataset 'digit'; did you mean 'digits'?")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("w4", "w8", "5:12: 'w8' is listed twice"),
        ("w4", "w08", "5:12: 'w8' is listed twice"),
        ("stub_plugins:large", "stub_plugins:small", "2:30: 'stub_plugins:small' is listed twice"),
        (
            "stub_plugins:large",
            "{name: 'stub_plugins:large', label: 'stub_plugins:small'}",
            "2:30: another model is called 'stub_plugins:small' already; give this one a label",
        ),
        (
            "stub_plugins:large",
            "{name: 'stub_plugins:small', label: other}",
            "2:30: 'other' is 'stub_plugins:small' again, under another label",
        ),
        (
            "stub_plugins:small",
            "{name: 'json:x', options: {n: 8}}, {name: 'json:x', options: {n: '8'}}",
            "2:45: another model is called 'json:x[n=8]' already; give this one a label",
        ),
    ],
)
def test_nothing_is_there_twice(refusal, spec_text, old, new, message):
    assert refusal(spec_text.replace(old, new)) == [message]


def test_an_execution_listed_twice_is_told_so(refusal, spec_text):
    lines = refusal(spec_text + "execution: [auto, auto]\n")
    assert lines == ["7:19: 'auto' is listed twice"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: 'json:x', label: \"a\\nb\"}", "a label has characters that can be seen"),
        ("{name: 'json:x', label: ' '}", "a label has characters that can be seen"),
        ("{name: 'json:x', options: {t: %s}}" % ("x" * 90), "give this entry a 'label': made of"),
    ],
)
def test_a_label_fits_a_table(refusal, spec_text, entry, message):
    (line,) = refusal(spec_text.replace("stub_plugins:small", entry))
    assert message in line


def test_a_scheme_that_takes_none_of_the_bits_is_told_the_form(refusal, spec_text):
    assert refusal(spec_text.replace("[w8, w4, w2, w8a8]", "[w8, w4]")) == [
        "4:24: scheme 'static' takes wNaM (like w8a8) and so none of the bits here: w8, w4"
    ]


def test_bits_may_only_be_left_out_where_every_scheme_has_its_own(refusal, load, spec_text):
    without = spec_text.replace("bits: [w8, w4, w2, w8a8]\n", "")
    assert refusal(without) == ["1:1: 'bits' is missing"]
    assert refusal(without.replace("[weight_only, static]", "[fp16, static]")) == [
        "1:1: 'bits' is missing"
    ]
    assert load(without.replace("[weight_only, static]", "[fp16, bf16]")).grid.bits == ()


def test_bits_that_only_a_float_format_could_take_are_refused_unless_it_is_its_own(
    refusal, load, spec_text
):
    formats = spec_text.replace("[weight_only, static]", "[fp16, fp8]")
    (line,) = refusal(formats.replace("[w8, w4, w2, w8a8]", "[w8, w4, w16a16]"))
    assert line.startswith("5:12: no scheme here takes w4")
    assert load(formats.replace("[w8, w4, w2, w8a8]", "[w8, w16a16]"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{group_size: 32}", "group_size is given with granularity per_group, and only with it"),
        ("{granularity: per_group}", "group_size is given with granularity per_group, and only"),
        ("{granularity: per_group, group_size: 1}", "group_size is 2 or more, not 1"),
        ("{granularity: per_chanel}", "'granularity' should be 'per_tensor', 'per_channel' or"),
        ("{granularity: per_group, group_size: 2.5}", "'group_size' should be a valid integer, no"),
        ("{symmetric: 'no'}", "'symmetric' should be a valid boolean, not 'no'"),
        ("{weight_range: entropy}", "'weight_range' should be 'minmax', 'mse' or"),
        ("{weight_range: signed_max, symmetric: false}", "signed_max is symmetric and takes the"),
        ("{weight_range: signed_max, narrow_range: true}", "signed_max is symmetric and takes the"),
        ("{layers: {'head.*': w8a8}}", "layers 'head.*': weight_only does not take w8a8"),
        ("{layers: {'head.*': int8}}", "'int8' is no bit-width; write wN (w4) or wNaM (w4a8)"),
        ("{layers: {'head.*': w17}}", "weights take 2–16 bits, not 17"),
        ("{granulariti: per_tensor}", "unexpected keyword argument 'granulariti'"),
    ],
)
def test_options_that_no_scheme_has_or_that_contradict_each_other_are_told_where(
    refusal, spec_text, options, message
):
    entry = f"{{name: weight_only, label: w, options: {options}}}"
    (line,) = refusal(spec_text.replace("[weight_only, static]", f"[static, {entry}]"))
    assert line.startswith("4:19: scheme 'w'")
    assert message in line


def test_a_format_that_does_not_exist_is_told_which_do(refusal, spec_text):
    entry = "{name: fp8, options: {format: e3m4}}"
    (line,) = refusal(spec_text.replace("weight_only", f"weight_only, {entry}"))
    assert line.endswith("raised ValueError: fp8 comes as e4m3 or e5m2, not 'e3m4'")


INCLUDED = f"{{calibration: {{samples: {list(range(1, 41))}}}}}"


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("calibration: {samples: [8, 0]}", "7:28: 'samples' should be greater than or equal to 1"),
        ("calibration: {seed: []}", "7:21: 'seed' is empty; list at least one"),
        ("calibration: {seed: [1, 2, 1]}", "7:28: '1' is listed twice"),
        ("calibration: {observer: [mse, mse]}", "7:31: 'mse' is listed twice"),
        ("calibration: {observer: percentile, percentile: 101}", "7:49: 'percentile' should be le"),
        ("calibration: {observer: percentile, percentile: 49}", "7:49: 'percentile' should be gre"),
        (
            "calibration: {percentile: [99, 99.9]}",
            "7:27: no observer here has a percentile; add observer: percentile",
        ),
        (
            "overrides: {when: {bits: w8a8}, set: {calibration: {percentile: 99}}}",
            "7:65: no observer here has a percentile; add observer: percentile",
        ),
        (
            "include: {calibration: {percentile: 99}}",
            "7:37: no observer here has a percentile; add observer: percentile",
        ),
        (
            "overrides: {when: {bits: w8a8}, set: {calibration: {seed: [1, 2]}}}",
            "7:59: 'seed' should be a valid integer, not [1, 2]",
        ),
        (
            f"calibration: {{samples: {list(range(1, 41))}, seed: {list(range(40))}}}",
            "7:14: these lists make 1,600 calibrations; 1,000 are the most",
        ),
        (
            f"calibration: {{seed: {list(range(40))}}}\ninclude: {INCLUDED}",
            "8:24: these lists make 1,600 calibrations; 1,000 are the most",
        ),
        ("include: {scheme: weight_only, calibration: {seed: 1}}", "7:45: no scheme here is calib"),
        ("include: {calibration: {seed: 0}}", "7:10: it adds nothing: the sweep has all"),
    ],
)
def test_a_calibration_that_cannot_be_is_told_why(refusal, spec_text, addition, message):
    (line,) = refusal(f"{spec_text}{addition}\n")
    assert line.startswith(message)


def test_a_percentile_that_only_an_override_uses_is_used(load, spec_text):
    load(
        f"{spec_text}calibration: {{percentile: 99}}\n"
        "overrides: {when: {bits: w8a8}, set: {calibration: {observer: percentile}}}\n"
    )


def test_bits_that_no_scheme_takes_are_told_what_they_need(refusal, spec_text):
    (line,) = refusal(spec_text.replace("[weight_only, static]", "weight_only"))
    assert line == (
        "5:20: no scheme here takes w8a8: that is for one that quantizes activations "
        "(like dynamic or static); here: weight_only"
    )


def test_a_sweep_without_any_cell_is_an_error(refusal, spec_text):
    lines = refusal(spec_text.replace("[weight_only, static]", "static").replace(", w8a8]", "]"))
    assert [line.partition(":")[0] for line in lines] == ["4", "5", "5", "5"]
