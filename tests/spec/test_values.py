"""What a valid spec turns into."""

from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qb_cluster.contracts import (
    Bits,
    Calibration,
    Device,
    Latency,
    Measure,
    ObserverName,
    Quantization,
    Ref,
)
from qb_cluster.contracts.calibration import calibration_label
from qb_cluster.spec import effective, kind_of

OBSERVERS = st.sampled_from(get_args(ObserverName))
PERCENTILES = st.floats(50, 100) | st.sampled_from([99.0, 99.9, 99.99])


def test_a_short_spec_has_the_defaults_of_the_contracts(load, spec_text):
    spec = load(spec_text)
    assert spec.grid.calibration == (Calibration(),)
    assert spec.measure == Measure()
    assert (spec.timeout_s, spec.timeout_retries) == (600, 0)
    assert spec.max_cells is None
    assert spec.grid.device == (Device("cpu", 1),)
    assert spec.grid.execution == ("auto",)
    assert spec.exclude == spec.overrides == spec.includes == ()
    assert spec.text == spec_text
    assert spec.source.name == "sweep.yaml"


def test_entries_become_references_with_labels_and_canonical_options(load, spec_text):
    entry = "{name: 'json:make', options: {width: 8, deep: {b: 1, a: [x, null]}}}"
    spec = load(spec_text.replace("stub_plugins:small", entry))
    assert spec.grid.model[0] == Ref(
        label='json:make[width=8,deep={"b":1,"a":["x",null]}]',
        target="json:make",
        options_json='{"deep":{"a":["x",null],"b":1},"width":8}',
    )


def test_a_lone_entry_stands_for_a_list_of_one(load, spec_text):
    lone = spec_text.replace("[stub_plugins:data]", "stub_plugins:data")
    assert load(lone).grid.dataset == load(spec_text).grid.dataset


def test_schemes_and_backends_are_made_with_their_options(load, spec_text):
    text = spec_text.replace(
        "weight_only", "{name: weight_only, options: {granularity: per_tensor}}"
    ).replace("stub_plugins:Half", "{name: 'stub_plugins:Anything', options: {flavour: sour}}")
    spec = load(text)
    assert spec.grid.scheme[0].scheme.granularity == "per_tensor"
    assert spec.grid.scheme[0].ref.label == "weight_only[granularity=per_tensor]"
    assert spec.grid.backend[0].backend.flavour == "sour"


def test_settings_replace_defaults_one_by_one(load, spec_text):
    spec = load(
        f"{spec_text}calibration: {{samples: 7}}\ntimeout_s: 5\ntimeout_retries: 10\n"
        "max_cells: 99\n"
        "measure:\n  metric: {name: accuracy, options: {k: 2}}\n  batch_size: 3\n  examples: 10\n"
        "  confidence: 0.9\n  latency: {min_runs: 4}\n"
    )
    assert spec.grid.calibration == (Calibration(samples=7),)
    assert spec.measure == Measure(
        metric=Ref("accuracy[k=2]", "accuracy", '{"k":2}'),
        batch_size=3,
        examples=10,
        confidence=0.9,
        latency=Latency(min_runs=4),
    )
    assert (spec.timeout_s, spec.timeout_retries, spec.max_cells) == (5.0, 10, 99)


def test_lists_of_calibration_settings_are_multiplied_observer_outermost(load, spec_text):
    calibrations = load(
        f"{spec_text}calibration: {{seed: [0, 1], observer: [mse, entropy], samples: 9}}\n"
    ).grid.calibration
    assert calibrations == (
        Calibration(9, 0, "mse"),
        Calibration(9, 1, "mse"),
        Calibration(9, 0, "entropy"),
        Calibration(9, 1, "entropy"),
    )


@pytest.mark.parametrize(
    ("calibration", "label"),
    [
        (None, "none"),
        (Calibration(), "minmax"),
        (Calibration(percentile=99.0), "minmax"),
        (Calibration(samples=32), "minmax[samples=32]"),
        (Calibration(32, 1, "mse"), "mse[samples=32,seed=1]"),
        (Calibration(observer="percentile"), "percentile[99.99]"),
        (Calibration(128, 2, "percentile", 99.0), "percentile[99,seed=2]"),
    ],
)
def test_a_calibration_is_called_by_its_observer_and_what_is_unusual(calibration, label):
    assert calibration_label(calibration) == label


@given(*[st.builds(Calibration, st.integers(1), st.integers(0), OBSERVERS, PERCENTILES)] * 2)
def test_calibrations_that_do_the_same_have_one_label_and_others_have_two(one, other):
    same = effective(one) == effective(other)
    assert (calibration_label(one) == calibration_label(other)) == same


def test_measuring_layers_is_off_unless_asked_for(load, spec_text):
    assert not load(spec_text).measure.layers
    assert load(f"{spec_text}measure: {{layers: true}}\n").measure.layers


def test_layers_with_bits_of_their_own_are_options_of_a_scheme(load, spec_text):
    entry = "{name: static, options: {layers: {'head.*': w8a8, stem: float}}}"
    spec = load(spec_text.replace("static", entry).replace("w8a8]", "w4a4]"))
    named = spec.grid.scheme[1]
    quantization = Quantization(named.scheme, spec.grid.bits[-1], "native", Calibration())
    layers = ("head.0", "stem", "body")
    assert [quantization.layer_bits(layer) for layer in layers] == [Bits(8, 8), None, Bits(4, 4)]
    assert named.ref.label == 'static[layers={"head.*":"w8a8","stem":"float"}]'


@pytest.fixture
def model_files(tmp_path, monkeypatch):
    for name in ("a.onnx", "b.tflite", "c.keras", "d.pt2", "weights.bin"):
        (tmp_path / "nets").mkdir(exist_ok=True)
        (tmp_path / "nets" / name).write_bytes(b"x")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("model_files")
def test_models_may_be_files_named_from_the_folder_where_qb_runs(load, spec_text):
    files = ["nets/a.onnx", "nets/b.tflite", "nets/c.keras", "nets/d.pt2", "saved", "./saved/"]
    for file in files[:-1]:
        (model, _) = load(spec_text.replace("stub_plugins:small", file)).grid.model
        assert model == Ref(file, file)
        assert kind_of(model) is not None
    (model, _) = load(spec_text.replace("stub_plugins:small", files[-1])).grid.model
    assert model == Ref("./saved/", "saved")


@pytest.mark.usefixtures("model_files")
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nets/e.onnx", "there is no model file 'nets/e.onnx' in the folder where qb runs, "),
        ("e.tflite", "there is no model file 'e.tflite' in the folder where qb runs, "),
        (
            "nets/weights.bin",
            "a model file is .onnx, .tflite, .keras, .pt2, or a SavedModel folder",
        ),
        ("./empty", "'./empty' is a folder without saved_model.pb"),
        ("{name: nets/a.onnx, options: {k: 1}}", "is a model file: it takes no options"),
        ("nets/a.onnx, ./nets/a.onnx", "'./nets/a.onnx' is 'nets/a.onnx' again, under another"),
    ],
)
def test_what_is_no_model_file_is_told_where(refusal, spec_text, entry, message):
    (line,) = refusal(spec_text.replace("stub_plugins:small", entry))
    assert line.startswith("2:")
    assert message in line


def test_latency_can_be_left_out(load, spec_text):
    assert load(f"{spec_text}measure: {{latency: false}}\n").measure.latency is None
    assert load(f"{spec_text}measure: {{latency: true}}\n").measure.latency == Latency()


def test_devices_differ_by_threads(load, spec_text):
    spec = load(f"{spec_text}devices: [cpu, {{name: cpu, threads: 2}}]\n")
    assert spec.devices == (Device("cpu", 1), Device("cpu", 2))


def test_models_datasets_and_metrics_are_not_imported(load, spec_text, tmp_path, monkeypatch):
    (tmp_path / "explosive.py").write_text(
        "raise SystemExit('imported')\nnet = data = metric = print\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = spec_text.replace("stub_plugins:small", "explosive:net").replace(
        "stub_plugins:data", "explosive:data"
    )
    spec = load(f"{text}measure: {{metric: 'explosive:metric'}}\n")
    assert spec.measure.metric.target == "explosive:metric"


def test_the_digest_is_of_what_the_file_says_not_how(load, spec_text):
    digest = load(spec_text).digest
    lines = spec_text.splitlines()
    assert load("# a comment\n" + "\n\n".join(reversed(lines))).digest == digest
    assert load(spec_text.replace("[stub_plugins:data]", "'stub_plugins:data'")).digest == digest
    assert load(spec_text + "timeout_s: 600\n").digest == digest
    assert load(spec_text + "timeout_s: 601\n").digest != digest
    assert load(spec_text.replace("w4", "w5")).digest != digest


def test_overrides_that_set_different_defaults_have_different_digests(load, spec_text):
    changes = [
        "timeout_s: 600",
        "timeout_retries: 0",
        "execution: auto",
        "measure: {batch_size: 64}",
    ]
    text = f"{spec_text}overrides: [{{when: {{bits: w8}}, set: {{%s}}}}]\n"
    assert len({load(text % change).digest for change in changes}) == len(changes)


def test_an_include_that_gives_a_default_and_one_that_inherits_have_different_digests(
    load, spec_text
):
    text = f"{spec_text}calibration: {{samples: 9}}\ninclude: {{calibration: {{seed: 1%s}}}}\n"
    given, inherited = load(text % ", samples: 128"), load(text % "")
    assert given.includes[0].calibration != inherited.includes[0].calibration
    assert given.digest != inherited.digest


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(2, 16), min_size=1, unique=True), st.integers(2, 16))
def test_every_bit_width_comes_through_as_it_was_written(load, widths, activation):
    written = [*(f"w{n}" for n in widths), *(f"w{n}a{activation}" for n in widths)]
    spec = load(
        "sweep: t\nmodels: json:m\ndatasets: json:d\nschemes: [weight_only, static]\n"
        f"bits: [{', '.join(written)}]\nbackends: stub_plugins:Half\n"
    )
    assert [str(bits) for bits in spec.grid.bits] == written
    assert [Bits.parse(text) for text in written] == list(spec.grid.bits)
