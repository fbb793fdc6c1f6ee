"""What a cluster has, as people read it and as a spec takes it."""

from qb_cluster.dispatch.device_list import as_json, as_spec, as_table
from qb_cluster.dispatch.preflight import NodeFacts, unmet

PI = {"qb/board": "rpi5", "qb/arch": "aarch64", "qb/accelerator": "none"}
GPU = {"qb/arch": "x86_64", "qb/accelerator": "nvidia-h100", "qb/torch": "2.13.0-cu130"}
NODES = [
    NodeFacts("pi2", 4, PI | {"qb/tflite-runtime": "2.14.0"}),
    NodeFacts("pi1", 3, PI),
    NodeFacts("box", 16, GPU, gpus=1),
    NodeFacts("old", 2, {"ray.io/node-group": "x"}),
]


def test_nodes_are_listed_by_name_with_what_they_are():
    heads, *lines = as_table(NODES).splitlines()
    assert heads.split() == ["host", "cores", "board", "arch", "accelerator", "runtimes"]
    assert [line.split() for line in lines] == [
        ["box", "16", "-", "x86_64", "nvidia-h100", "torch=2.13.0-cu130"],
        ["old", "2", "-", "-", "-", "-"],
        ["pi1", "3", "rpi5", "aarch64", "none", "-"],
        ["pi2", "4", "rpi5", "aarch64", "none", "tflite-runtime=2.14.0"],
    ]


def test_the_words_for_a_spec_are_taken_by_one_and_every_device_is_served(load, spec_text):
    text = as_spec(NODES)
    assert text.splitlines()[1:] == [
        "  - {name: cpu, threads: 2}  # any node; old has no labels",
        (
            '  - {name: "nvidia-h100", accelerator: "nvidia-h100", labels: {qb/arch: "x86_64"}, '
            "threads: 16}  # box"
        ),
        (
            '  - {name: "rpi5", labels: {qb/board: "rpi5", qb/arch: "aarch64"}, threads: 3}'
            "  # pi1, pi2"
        ),
    ]
    spec = load(f"{spec_text}{text}\n")
    assert unmet(spec.devices, NODES) == []


def test_kinds_that_would_have_one_name_are_numbered(load, spec_text):
    nodes = [NodeFacts(arch, 1, {"qb/board": "vm", "qb/arch": arch}) for arch in ("a", "b")]
    spec = load(f"{spec_text}{as_spec(nodes)}\n")
    assert [device.name for device in spec.devices] == ["vm", "vm-2"]


def test_values_that_look_like_numbers_stay_text(load, spec_text):
    spec = load(f"{spec_text}{as_spec([NodeFacts('n', 1, {'qb/board': '5'})])}\n")
    assert spec.devices[0].labels == (("qb/board", "5"),)


def test_as_json_nothing_is_left_out():
    first = as_json(NODES)[0]
    assert first == {"host": "box", "cores": 16, "labels": GPU}
