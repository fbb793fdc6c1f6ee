"""What `qb backends NAME` shows of kinds of layers is what the documents say."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Ref
from qb_cluster.contracts.coverage import LAYER_KINDS
from qb_cluster.plan.handled_kinds import handled_kinds_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "schemes.md"
BACKENDS = ("pytorch", "onnxruntime", "tflite")


def drawn(name):
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(handled_kinds_table(name))
    return [re.split(r"  +", line.strip()) for line in capture.get().splitlines()]


def test_the_document_says_of_every_kind_what_the_backends_say():
    heading = "| | `pytorch` | `onnxruntime` | `tflite` |\n|---|---|---|---|\n"
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(heading)
    rows = [line.strip("|").split("|") for line in rest.split("\n\n")[0].splitlines()]
    documented = {
        kind.strip(" `"): dict(zip(BACKENDS, cells, strict=True)) for kind, *cells in rows
    }
    assert set(documented) == set(LAYER_KINDS)
    for name in BACKENDS:
        handles = plugins.make("backend", Ref(name, name)).handles
        for kind in LAYER_KINDS:
            said = [handles[each][kind] for each in ("none", "dynamic", "static")]
            words = " / ".join(said).replace("weights rounded", "weights")
            assert documented[kind][name].strip() == words


@pytest.mark.parametrize("name", BACKENDS)
def test_the_table_has_a_row_for_every_kind_and_one_for_activations(name):
    heading, *rows = drawn(name)
    assert heading == [f"{name}, 8 bits, native", "weight_only", "dynamic", "static"]
    assert [row[0] for row in rows] == [*LAYER_KINDS, "activations"]
    scope = "inputs" if name == "pytorch" else "layers"
    assert rows[-1][1:] == ["–", "inputs", scope]


def test_a_backend_that_does_not_say_has_no_table():
    assert handled_kinds_table("tensorflow") is None
