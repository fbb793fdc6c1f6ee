"""Where cells run: what a node must be is part of a cell's name, what it is called is not."""

import json

from qb_cluster.contracts import Device
from qb_cluster.plan import expand, plan_json_lines, plan_lines


def ids(cells):
    return [cell.cell_id for cell in cells]


def on(name, labels, more=""):
    return f"devices: {{name: {name}, labels: {labels}{more}}}\n"


def test_the_labels_of_a_device_are_in_the_id_and_its_name_is_not(cells_of, spec_text):
    plain = ids(cells_of(spec_text))
    rpi5 = ids(cells_of(spec_text + on("rpi5", "{qb/board: rpi5}")))
    assert not set(plain) & set(rpi5)
    assert ids(cells_of(spec_text + on("kitchen", "{qb/board: rpi5}"))) == rpi5
    for other in (on("rpi5", "{qb/board: rpi4}"), on("rpi5", "{qb/board: rpi5}", ", threads: 2")):
        assert not set(ids(cells_of(spec_text + other))) & set(rpi5)


def test_a_device_with_labels_has_baselines_of_its_own(cells_of, spec_text):
    text = f"{spec_text}devices: [cpu, {{name: rpi5, labels: {{qb/board: rpi5}}, threads: 4}}]\n"
    cells = cells_of(text)
    assert {c.device for c in cells} == {Device(), Device("rpi5", 4, (("qb/board", "rpi5"),))}
    devices = {c.cell_id: c.device for c in cells if c.is_baseline}
    runnable = [c for c in cells if c.execution is not None]
    assert all(devices[c.baseline_cell_id] == c.device for c in runnable)


def test_rules_reach_the_cells_of_a_device_by_its_name(cells_of, spec_text):
    cells = cells_of(
        f"{spec_text}devices: [cpu, {{name: rpi5, labels: {{qb/board: rpi5}}, threads: 4}}]\n"
        "exclude: {device: rpi5, bits: 'w4*'}\n"
        "overrides: {when: {device: rpi5}, set: {timeout_retries: 2}}\n"
        "include: {device: rpi5, bits: w6}\n"
    )
    bits = {
        name: {str(c.bits) for c in cells if c.device.name == name and c.bits}
        for name in ("cpu", "rpi5")
    }
    assert bits["cpu"] - bits["rpi5"] == {"w4"}
    assert bits["rpi5"] - bits["cpu"] == {"w6"}
    assert {c.timeout_retries for c in cells if c.device.name == "rpi5"} == {2}
    assert {c.timeout_retries for c in cells if c.device.name == "cpu"} == {0}


def test_the_plan_shows_a_device_by_its_name_and_as_json_its_labels(load, spec_text):
    spec = load(spec_text + on("rpi5", "{qb/board: rpi5}", ", threads: 4"))
    _, first, *_ = plan_lines(expand(spec))
    assert first.split()[4] == "rpi5"
    record = json.loads(next(plan_json_lines(expand(spec))))
    assert (record["device"], record["threads"]) == ("rpi5", 4)
    assert record["device_labels"] == {"qb/board": "rpi5"}


def test_a_device_runs_the_backends_it_names_alone_and_their_ids_stay(cells_of, spec_text):
    half, anything = "stub_plugins:Half", "stub_plugins:Anything"
    text = spec_text.replace(f"[{half}]", f"[{half}, {anything}]")
    every = cells_of(text + on("rpi5", "{qb/board: rpi5}"))
    assert {cell.backend.label for cell in every} == {half, anything}
    for written in (f"'{half}'", f"['{half}']"):
        cells = cells_of(text + on("rpi5", "{qb/board: rpi5}", f", backends: {written}"))
        assert ids(cells) == [cell.cell_id for cell in every if cell.backend.label == half]


def test_where_artifacts_are_made_is_in_no_id_and_what_has_a_runtime_alone_simulates_nothing(
    cells_of, spec_text
):
    pi = "{qb/board: rpi5}"
    both = cells_of(spec_text + on("pi", pi))
    apart = cells_of(spec_text + on("pi", pi, ", prepared_on: {role: converter}"))
    elsewhere = cells_of(spec_text + on("pi", pi, ", prepared_on: {role: other}"))
    assert ids(apart) == ids(elsewhere)
    native = {cell.cell_id for cell in both if cell.execution == "native"}
    assert native == {cell.cell_id for cell in apart if cell.execution is not None}
    simulated = sum(cell.execution == "simulated" for cell in both)
    reasons = [cell.reason for cell in apart if "runtime alone simulates nothing" in cell.reason]
    assert len(reasons) == simulated > 0


def test_a_board_runs_what_is_native_and_has_a_runtime_and_moves_without_new_ids(
    cells_of, spec_text
):
    def on_board(host, backend="stub_plugins:Half"):
        text = spec_text.replace("stub_plugins:Half", backend)
        return cells_of(f"{text}devices: {{name: zero, ssh: {{host: {host}}}}}\n")

    cells = on_board("zero.local")
    assert {cell.execution for cell in cells} == {None}
    assert {cell.reason for cell in cells} == {
        "stub_plugins:Half has no runtime for boards without Ray"
    }
    portable = on_board("zero.local", "stub_plugins:Portable")
    assert {cell.execution for cell in portable} == {"native", None}
    reasons = {str(cell.bits): cell.reason for cell in portable if cell.execution is None}
    assert (
        reasons["w4"]
        == "a device with a runtime alone simulates nothing; not native: its kernels are 8-bit"
    )
    assert ids(on_board("192.0.2.7", "stub_plugins:Portable")) == ids(portable)
