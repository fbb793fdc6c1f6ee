"""The matrix of what backends support is what they say themselves."""

import json
import subprocess
import sys
from itertools import groupby

import pytest
from rich.console import Console

from qb_cluster.catalog.plugins import registered
from qb_cluster.contracts import Bits, Calibration, Quantization, Ref
from qb_cluster.errors import PlugInError
from qb_cluster.plan.support_matrix import (
    USUAL_BITS,
    support_json_lines,
    support_matrix,
    support_table,
)
from qb_cluster.spec import named_backend, named_scheme

OURS = ["pytorch", "tflite", "onnxruntime"]
STATIC = [Ref("static", "static")]


@pytest.fixture(autouse=True)
def _stubs(load):
    """Put the stub plug-ins where they can be imported."""


def drawn(entries):
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(support_table(entries))
    return capture.get()


def test_every_registered_scheme_is_asked_at_every_usual_bit_width_of_its_form():
    pairs = {(e.scheme.label, e.bits) for e in support_matrix(["pytorch"])}
    assert {scheme for scheme, _ in pairs} == set(registered("scheme"))
    assert {bits for scheme, bits in pairs if scheme == "fp16"} == {Bits(16, 16)}
    for scheme in ("weight_only", "static", "dynamic"):
        form = {bits for bits in USUAL_BITS if (bits.activation is None) == ("w" in scheme)}
        assert {bits for name, bits in pairs if name == scheme} == form


@pytest.mark.parametrize("name", OURS)
def test_an_entry_is_what_the_backend_says(name):
    backend = named_backend(Ref(name, name)).backend
    for entry in support_matrix([name]):
        scheme = named_scheme(entry.scheme).scheme
        calibration = Calibration() if scheme.activations == "static" else None
        for execution in ("native", "simulated"):
            said = backend.support(Quantization(scheme, entry.bits, execution, calibration))
            assert getattr(entry, execution) == said


@pytest.mark.parametrize("name", OURS)
def test_whatever_is_not_supported_has_a_reason(name):
    for entry in support_matrix([name]):
        for support in (entry.native, entry.simulated):
            assert support.supported or support.reason


def test_a_backend_that_is_not_installed_supports_nothing_and_says_what_it_needs():
    entries = list(support_matrix(["stub_plugins:Uninstalled"], STATIC))
    assert entries
    assert {entry.execution for entry in entries} == {None}
    assert {entry.native.reason for entry in entries} == {
        "module 'module_that_nobody_has.part' is not installed"
    }


def test_a_backend_that_is_not_there_is_told_the_nearest():
    with pytest.raises(PlugInError, match="did you mean 'pytorch'"):
        next(support_matrix(["pytorhc"]))


def test_the_table_has_a_column_a_backend_and_rows_for_bits_that_are_alike():
    weight_only = [Ref("weight_only", "weight_only"), Ref("fp16", "fp16")]
    bits = [Bits(n) for n in (2, 3, 4, 8)]
    names = ["stub_plugins:Half", "stub_plugins:Kernels"]
    heading, *rows = drawn(support_matrix(names, weight_only, bits)).splitlines()
    assert heading.split() == ["scheme", "bits", *names]
    table = [row.split() for row in rows[: rows.index("")]]
    assert table == [
        ["weight_only", "w2", "–", "(1)", "native"],
        ["w3", "w4", "simulated", "(2)", "native"],
        ["w8", "native", "native"],
        ["fp16", "w16a16", "simulated", "(2)", "native"],
    ]
    assert [row.split() for row in rows[rows.index("") + 1 :]] == [
        ["1", "below", "3", "bits"],
        ["2", "its", "kernels", "are", "8-bit"],
    ]


def test_a_reason_that_quotes_the_bits_is_one_reason():
    bits = [Bits(2, 2), Bits(4, 4), Bits(8, 8)]
    table = drawn(support_matrix(["stub_plugins:Quoting"], STATIC, bits)).splitlines()
    assert [line.split() for line in table[1:3]] == [
        ["static", "w2a2", "w4a4", "–", "(1)"],
        ["w8a8", "–", "(2)"],
    ]
    assert [line.split(maxsplit=1)[1].strip() for line in table[4:]] == [
        "such bits are too many, w8a8 is not",
        "w8a8 are too many, w8a8 is not",
    ]


def test_every_json_line_is_an_entry():
    entries = list(support_matrix(OURS, STATIC))
    records = [json.loads(line) for line in support_json_lines(entries)]
    assert len(records) == len(entries)
    for entry, record in zip(entries, records, strict=True):
        assert record["backend"] == entry.backend
        assert record["bits"] == str(entry.bits)
        assert record["native"]["supported"] == entry.native.supported
        assert record["execution"] == entry.execution


def test_the_backends_of_a_scheme_and_bit_width_come_together():
    entries = support_matrix(OURS)
    rows = [
        (key, [e.backend for e in row])
        for key, row in groupby(entries, lambda e: (e.scheme.label, e.bits))
    ]
    assert len({key for key, _ in rows}) == len(rows)
    assert all(backends == OURS for _, backends in rows)


def test_the_matrix_of_all_our_backends_imports_no_framework():
    script = (
        "import sys\nfrom qb_cluster.plan.support_matrix import support_matrix\n"
        f"assert list(support_matrix({OURS!r}))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "torchao", "tensorflow", "ai_edge_litert", "onnx", "onnxruntime"}
