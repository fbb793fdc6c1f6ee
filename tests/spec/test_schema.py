"""The published JSON Schema is the one that the code has, and accepts what the code accepts."""

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from qb_cluster.spec import json_schema

SWEEPS = Path(__file__).parents[2] / "sweeps"


def instance(text):
    return YAML(typ="safe", pure=True).load(text)


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def test_the_published_schema_is_current():
    published = json.loads((SWEEPS / "sweep.schema.json").read_text(encoding="utf-8"))
    assert published == json_schema(), "run: make schema"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_sweep_names_the_schema_and_follows_it(validator, path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=sweep.schema.json\n")
    validator.validate(instance(text))


def test_the_schema_takes_what_the_code_takes(validator, load, spec_text):
    text = spec_text + (
        "devices: [cpu, {name: cpu, threads: 2}, {name: pi, labels: {qb/board: '5'}}]\n"
        "execution: [native, simulated]\n"
        "calibration: {samples: 3, seed: [1, 2], observer: [mse, percentile], percentile: 99.9}\n"
        "measure: {metric: {name: accuracy}, examples: null, latency: {min_s: 1}, layers: true}\n"
        "exclude: {bits: [w8a8, 'w2*'], calibration: mse*}\n"
        "include: [{bits: w8, model: {name: 'json:x', label: x, options: {a: [1]}}, device: pi}]\n"
        "overrides: [{when: {bits: w4}, set: {measure: {latency: false}, timeout_s: 9}},\n"
        "  {when: {device: pi}, set: {timeout_retries: 1}},\n"
        "  {when: {scheme: static}, set: {calibration: {seed: 3, percentile: 90}}}]\n"
        "timeout_s: 1.5\ntimeout_retries: 3\nmax_cells: 100\n"
    )
    load(text)
    validator.validate(instance(text))


@pytest.mark.parametrize(
    "change",
    [
        ("backends", "backend"),
        ("w4", "w1a0"),
        ("w4", "8"),
        ("[stub_plugins:data]", "[]"),
        ("trial", "a/b"),
        ("sweep: trial\n", ""),
        ("sweep: trial", "sweep: trial\ndevices: gpu"),
        ("sweep: trial", "sweep: trial\ndevices: {name: pi}"),
        ("sweep: trial", "sweep: trial\ndevices: {name: cpu, labels: {a: b}}"),
        ("sweep: trial", "sweep: trial\ndevices: {name: pi, labels: {}}"),
        ("sweep: trial", "sweep: trial\ndevices: {name: pi, labels: {a: 5}}"),
        ("sweep: trial", "sweep: trial\ndevices: {name: pi, labels: {'a b': c}}"),
        ("sweep: trial", "sweep: trial\ndevices: {name: pi, labels: {a: '!b'}}"),
        ("sweep: trial", "sweep: trial\ndevices: {name: 'a|b', labels: {a: b}}"),
        ("sweep: trial", "sweep: trial\ntimeout_retries: 11"),
        ("sweep: trial", "sweep: trial\ntimeout_retries: 1.5"),
        ("sweep: trial", "sweep: trial\nexclude: [{modle: x}]"),
        ("sweep: trial", "sweep: trial\nmeasure: {confidence: 2}"),
        ("sweep: trial", "sweep: trial\ncalibration: {observer: [minmax, max]}"),
        ("sweep: trial", "sweep: trial\ncalibration: {observer: percentile, percentile: [0.5]}"),
    ],
)
def test_the_schema_refuses_what_the_code_refuses(validator, refusal, spec_text, change):
    text = spec_text.replace(*change)
    assert refusal(text)
    assert not validator.is_valid(instance(text))


def test_every_key_of_a_sweep_is_described_for_editors():
    schema = json_schema()
    for key, value in schema["properties"].items():
        named = value.get("$ref", "").rpartition("/")[2]
        assert value.get("description") or schema["$defs"][named]["description"], key
