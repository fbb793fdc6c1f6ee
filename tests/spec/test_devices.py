"""Devices: `cpu` is any node; names of the user's own are for nodes with labels."""

import dataclasses

import pytest

from qb_cluster.contracts import Device

BOARD = "{name: rpi5, labels: {qb/board: rpi5, ray.io/market-type: spot}, threads: 4}"
RPI5 = Device("rpi5", 4, (("qb/board", "rpi5"), ("ray.io/market-type", "spot")))


def test_a_name_of_the_users_own_stands_for_nodes_with_labels(load, spec_text):
    spec = load(f"{spec_text}devices: [{BOARD}, cpu]\n")
    assert spec.devices == (RPI5, Device())
    assert spec.grid.labels("device") == ("rpi5", "cpu")


def test_an_accelerator_is_a_label_and_a_gpu(load, spec_text):
    short = load(f"{spec_text}devices: {{name: h, accelerator: nvidia-h100}}\n").devices
    text = "{name: h, gpus: 1, labels: {qb/accelerator: nvidia-h100}}"
    assert short == load(f"{spec_text}devices: {text}\n").devices
    assert short == (Device("h", 1, (("qb/accelerator", "nvidia-h100"),), gpus=1),)


def test_a_device_may_leave_the_making_of_artifacts_to_other_nodes(load, spec_text):
    text = f"{spec_text}devices: {BOARD[:-1]}, prepared_on: {{role: converter}}}}\n"
    (device,) = load(text).devices
    assert device == dataclasses.replace(RPI5, prepared_on=(("role", "converter"),))
    assert device.host == Device(labels=(("role", "converter"),))
    assert RPI5.host == RPI5


def test_a_lone_device_stands_for_a_list_of_one(load, spec_text):
    assert load(f"{spec_text}devices: {BOARD}\n").devices == (RPI5,)


def test_the_order_of_labels_does_not_count(load, spec_text):
    one, other = (
        load(f"{spec_text}devices: {{name: b, labels: {{{labels}}}}}\n")
        for labels in ("z: '1', a: '2'", "a: '2', z: '1'")
    )
    assert one.devices == other.devices
    assert one.digest == other.digest


@pytest.mark.parametrize("pattern", ["rpi5", "rpi*", "[rpi5, cpu]"])
def test_rules_call_such_a_device_by_its_name_whatever_its_threads(load, spec_text, pattern):
    spec = load(
        f"{spec_text}devices: [{BOARD}, cpu]\nexclude: {{device: {pattern}, bits: w2}}\n"
        f"overrides: {{when: {{device: {pattern}}}, set: {{timeout_s: 9}}}}\n"
    )
    assert spec.exclude[0].accepts("device", "rpi5")
    assert spec.overrides[0].when.accepts("device", "rpi5")


def test_an_include_names_such_a_device_or_brings_it(load, spec_text):
    named = load(f"{spec_text}devices: [cpu, {BOARD}]\ninclude: {{device: rpi5, bits: w6}}\n")
    assert named.includes[0].device == (RPI5,)
    brought = load(f"{spec_text}include: {{device: {BOARD}, bits: w6}}\n")
    assert brought.grid.device == (Device(),)
    assert brought.includes[0].device == (RPI5,)
    threads = "devices: [{name: cpu, threads: 2}]\ninclude: {device: 'cpu[threads=2]', bits: w6}\n"
    assert load(spec_text + threads).includes[0].device == (Device("cpu", 2),)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (
            "[{name: rpi5}]",
            "18: unknown device 'rpi5'; known: cpu; a name of your own takes labels: {qb/board: …}",
        ),
        ("[rpi5]", "11: unknown device 'rpi5'; known: cpu"),
        (
            "[{name: cpu, labels: {qb/board: rpi5}}]",
            "18: 'cpu' is any node; nodes with labels or GPUs take another name",
        ),
        (
            "[{name: b, labels: {rev: 5}}]",
            "35: 'rev' takes text, not 5; put it in quotes if it is a name",
        ),
        (
            "[{name: b, labels: {fan: true}}]",
            "35: 'fan' takes text, not True; put it in quotes if it is a name",
        ),
        ("[{name: b, labels: {fan: }}]", "30: 'fan' is empty; give it a value, or leave the key"),
        ("[{name: b, labels: }]", "21: 'labels' is empty; give it a value, or leave the key out"),
        ("[{name: b, labels: {}}]", "29: 'labels' is empty; list at least one"),
        ("[{name: b, labels: {5: a}}]", "30: a key is text; put it in quotes"),
        ("[{name: b, labels: {a: b, a: c}}]", "36: 'a' is given twice"),
        ("[{name: b, labels: {'a b': c}}]", "37: 'a b' is no label of a node; labels are like"),
        ("[{name: b, labels: {a: '!c'}}]", "33: '!c' is no value of a label: that is 1 to 63"),
        ("[{name: b, labels: {a: 'in(c)'}}]", "33: 'in(c)' is no value of a label"),
        ("[{name: b, label: {a: c}}]", "21: unknown key 'label'; did you mean 'labels'?"),
        ("[{name: cpu, backends: []}]", "33: 'backends' is empty; list at least one"),
        ("[{name: cpu, backends: tflit}]", "33: no backend 'tflit' in this sweep"),
        ("[{name: cpu, gpus: 1}]", "18: 'cpu' is any node; nodes with labels or GPUs take"),
        ("[{name: b, gpus: 2}]", "27: 'gpus' should be less than or equal to 1, not 2"),
        ("[{name: b, gpus: 1, ssh: {host: h}}]", "18: gpus: for nodes of Ray; leave it out"),
        (
            "[{name: b, accelerator: h100, labels: {qb/accelerator: h100}}]",
            "18: 'accelerator' is the label qb/accelerator; give one of them",
        ),
        ("[{name: b, prepared_on: {a: b}}]", "18: unknown device 'b'; known: cpu; a name"),
        ("[{name: b, ssh: {host: h}, prepared_on: {}}]", "50: 'prepared_on' is empty; list at"),
        (
            "[{name: b, gpus: 1, prepared_on: {a: b}}]",
            "18: prepared_on: artifacts for a GPU are made on it; leave it out",
        ),
        ("[{name: b, ssh: {}}]", "26: 'host' is missing"),
        (
            "[{name: b, ssh: {host: h, port: 99999}}]",
            "42: 'port' should be less than or equal",
        ),
        (
            "[{name: b, ssh: {host: h, password: x}}]",
            "36: unknown key 'password'; known: folder",
        ),
        ("[{name: cpu, ssh: {host: h}}]", "18: 'cpu' is any node; a board takes another name"),
        ("[{name: b, ssh: {host: h}, labels: {a: b}}]", "18: labels: for nodes of Ray"),
        (
            "[{name: b, ssh: {host: h}}, {name: c, ssh: {host: h}}]",
            "38: 'c' is 'b' again, under another name",
        ),
        ("[{name: 'a|b', labels: {a: b}}]", "18: 'name' takes letters, digits, '.', '_' and '-'"),
        ("[{labels: {a: b}}]", "11: 'name' is missing"),
        (
            "[{name: b, labels: {a: b}}, {name: b, labels: {a: c}}]",
            "38: another device is called 'b' already; give this one another name",
        ),
        (
            "[{name: b, labels: {a: b}}, {name: b, labels: {a: b}, threads: 2}]",
            "38: another device is called 'b' already; give this one another name",
        ),
        (
            "[{name: b, labels: {a: b}}, {name: c, labels: {a: b}}]",
            "38: 'c' is 'b' again, under another name",
        ),
    ],
)
def test_what_is_no_device_is_told_where(refusal, spec_text, devices, message):
    (line,) = refusal(f"{spec_text}devices: {devices}\n")
    assert line.startswith(f"7:{message}")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("include: {device: rpi4, bits: w6}", "8:19: unknown device 'rpi4'; known: cpu, rpi5"),
        ("exclude: {device: rpi4}", "8:19: no device 'rpi4' in this sweep; did you mean 'rpi5'?"),
        (
            "overrides: {when: {device: rpi4}, set: {timeout_s: 9}}",
            "8:28: no device 'rpi4' in this sweep; did you mean 'rpi5'?",
        ),
    ],
)
def test_a_rule_for_a_device_that_is_not_there_names_those_that_are(
    refusal, spec_text, rule, message
):
    assert refusal(f"{spec_text}devices: [{BOARD}]\n{rule}\n") == [message]
