"""Whatever a file holds, it ends as a sweep or as a SpecError that says where."""

import json
import re
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qb_cluster.errors import SpecError
from qb_cluster.spec.document import parse
from qb_cluster.spec.schema import CalibrationKeys, SweepKeys
from qb_cluster.spec.sweep import SweepSpec

PLACED = re.compile(r".*sweep\.yaml:[1-9]\d*:[1-9]\d*: \S")
NAMES = st.sampled_from(
    [
        *SweepKeys.model_fields,
        *CalibrationKeys.model_fields,
        *("model", "scheme", "name", "options", "when", "set", "label", "layers", "x"),
        *("device", "labels", "threads"),
    ]
)
TEXT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=8
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.sampled_from(["w8", "w4a8", "cpu", "auto", "digits", "weight_only", "stub_plugins:Half"]),
    st.sampled_from(["static", "fp16", "minmax", "percentile", "x.onnx", "./x.pt2"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ends_well(load, text):
    try:
        assert isinstance(load(text), SweepSpec)
    except SpecError as error:
        *lines, last = str(error).splitlines()
        assert len(lines) <= 10
        for line in [*lines, last]:
            assert PLACED.match(line) or (line is last and line.startswith("… and ")), line


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@#,?\n\t \\<=0é\x85\u2028"), max_size=40))
@MANY
def test_any_text_ends_well(load, text):
    ends_well(load, text)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
@MANY
def test_any_value_under_any_key_ends_well(load, changes):
    whole = {
        "sweep": "t",
        "models": ["json:m"],
        "datasets": ["json:d"],
        "schemes": ["weight_only"],
        "bits": ["w8"],
        "backends": ["stub_plugins:Half"],
    } | changes
    ends_well(load, json.dumps(whole))


@MANY
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_json_reads_as_itself(data):
    for ensure_ascii in (True, False):
        text = json.dumps(data, ensure_ascii=ensure_ascii)
        assert parse(text, Path("s.yaml")).data == data
