"""What a valid spec turns into."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qb_cluster.contracts import Bits, Calibration, Device, Latency, Measure, Ref


def test_a_short_spec_has_the_defaults_of_the_contracts(load, spec_text):
    spec = load(spec_text)
    assert spec.calibration == Calibration()
    assert spec.measure == Measure()
    assert spec.timeout_s == 600
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
        f"{spec_text}calibration: {{samples: 7}}\ntimeout_s: 5\nmax_cells: 99\n"
        "measure:\n  metric: {name: accuracy, options: {k: 2}}\n  batch_size: 3\n  examples: 10\n"
        "  confidence: 0.9\n  latency: {min_runs: 4}\n"
    )
    assert spec.calibration == Calibration(samples=7)
    assert spec.measure == Measure(
        metric=Ref("accuracy[k=2]", "accuracy", '{"k":2}'),
        batch_size=3,
        examples=10,
        confidence=0.9,
        latency=Latency(min_runs=4),
    )
    assert (spec.timeout_s, spec.max_cells) == (5.0, 99)


def test_latency_can_be_left_out(load, spec_text):
    assert load(f"{spec_text}measure: {{latency: false}}\n").measure.latency is None
    assert load(f"{spec_text}measure: {{latency: true}}\n").measure.latency == Latency()


def test_devices_differ_by_threads(load, spec_text):
    spec = load(f"{spec_text}devices: [cpu, {{name: cpu, threads: 2}}]\n")
    assert spec.devices == (Device("cpu", 1), Device("cpu", 2))


def test_models_datasets_and_metrics_are_not_imported(load, spec_text, tmp_path, monkeypatch):
    (tmp_path / "explosive.py").write_text("raise SystemExit('imported')\n")
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
    changes = ["timeout_s: 600", "execution: auto", "measure: {batch_size: 64}"]
    text = f"{spec_text}overrides: [{{when: {{bits: w8}}, set: {{%s}}}}]\n"
    assert len({load(text % change).digest for change in changes}) == 3


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
