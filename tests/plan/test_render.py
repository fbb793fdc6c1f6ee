"""What people and programs read of a plan, also of one with millions of cells."""

import json
import tracemalloc
from itertools import islice

import pytest

from qb_cluster.plan import expand, expected_size, plan_json_lines, plan_lines

MILLION = """\
sweep: million
models: [{models}]
datasets: [{datasets}]
schemes: [weight_only, dynamic, static]
bits: [{bits}]
backends: [stub_plugins:Half, stub_plugins:Anything]
""".format(
    models=", ".join(f"stub_plugins:model_{n}" for n in range(100)),
    datasets=", ".join(f"stub_plugins:data_{n}" for n in range(50)),
    bits=", ".join(
        [f"w{n}" for n in range(2, 17)] + [f"w{n}a{m}" for n in (2, 4, 8) for m in range(2, 17)]
    ),
)


def test_a_plan_is_a_table_with_reasons_and_a_summary(load, spec_text):
    heading, *rows, summary = plan_lines(expand(load(spec_text)))
    assert heading.split() == [
        "cell_id", "model", "dataset", "backend", "device", "scheme", "bits", "calibration",
        "execution", "why",
    ]  # fmt: skip
    assert len(rows) == 10
    assert rows[0].split()[1:] == [
        "stub_plugins:small", "stub_plugins:data", "stub_plugins:Half", "cpu", "float", "f32",
        "none", "native",
    ]  # fmt: skip
    why = heading.index("why")
    assert rows[2][why:] == "not native: its kernels are 8-bit"
    assert rows[3][heading.index("execution") :].startswith("unsupported native: below 3 bits")
    assert summary == "10 cells: 4 native, 2 simulated, 2 unsupported, 2 float baselines"
    assert all(line == line.rstrip() for line in [heading, *rows, summary])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("granularity: per_tensor", ""),
        ("granularity: per_group, group_size: 32", "weights -8…7, signed scale; "),
        ("granularity: per_group, group_size: 32, weight_range: minmax", ""),
        ("weight_range: signed_max", "weights -8…7, signed scale; "),
        ("narrow_range: false", "weights -8…7; "),
        ("symmetric: false", "weights 0…15, affine; "),
    ],
)
def test_a_plan_names_the_integers_of_weights_where_they_are_not_the_usual_ones(
    load, spec_text, options, said
):
    entry = f"{{name: weight_only, label: mine, options: {{{options}}}}}"
    heading, *rows, _ = plan_lines(expand(load(spec_text.replace("weight_only", entry))))
    row = next(row for row in rows if " mine " in row and " w4 " in row)
    assert row[heading.index("why") :] == f"{said}not native: its kernels are 8-bit"


def test_every_json_line_is_one_cell_under_the_names_of_the_results(load, spec_text):
    spec = load(spec_text)
    lines = list(plan_json_lines(expand(spec)))
    records = [json.loads(line) for line in lines]
    assert [r["cell_id"] for r in records] == [cell.cell_id for cell in expand(spec)]
    assert (records[0]["scheme"], records[0]["bits"]) == ("float", "f32")
    assert records[0]["baseline_cell_id"] == records[0]["cell_id"]
    simulated = records[2]
    assert simulated["bits"] == "w4"
    assert simulated["execution"] == "simulated"
    assert simulated["latency"] is None
    assert simulated["reason"] == "not native: its kernels are 8-bit"
    assert records[3]["execution"] is None
    assert records[4]["calibration"] == {
        "samples": 128, "seed": 0, "observer": "minmax", "percentile": 99.99,
    }  # fmt: skip
    assert records[4]["simulator"] == "stub_plugins:Half"
    assert (simulated["simulator"], simulated["layers"]) == (None, False)
    assert records[4]["latency"]["min_runs"] == 50
    assert (records[4]["timeout_s"], records[4]["timeout_retries"]) == (600, 0)


def test_a_million_cells_are_counted_exactly(load):
    assert expected_size(load(MILLION)) == 100 * 50 * 2 * (15 + 2 * 45) + 100 * 50 * 2


@pytest.mark.parametrize("render", [plan_lines, plan_json_lines])
def test_a_plan_of_a_million_cells_starts_at_once_and_stays_flat_in_memory(load, render):
    spec = load(MILLION)
    taken = 0

    def counted():
        nonlocal taken
        for cell in expand(spec):
            taken += 1
            yield cell

    lines = render(counted())
    assert next(lines)
    assert taken <= 1_000  # the first line waits for no more than a screenful of others
    tracemalloc.start()
    try:
        assert sum(1 for _ in islice(lines, 2_000)) == 2_000
        early = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(1 for _ in islice(lines, 20_000)) == 20_000
        late = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert late < 2 * 2**20
    assert late < early + 2**18
