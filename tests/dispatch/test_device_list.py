"""What a cluster has, as people read it and as a spec takes it."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qb_cluster.cli import cli
from qb_cluster.dispatch import ray_cluster
from qb_cluster.dispatch.device_list import as_json, as_spec, as_table
from qb_cluster.dispatch.preflight import NodeFacts, unmet
from qb_cluster.nodes import self_description
from qb_cluster.nodes.accelerators import Accelerator

PI = {"qb/board": "rpi5", "qb/arch": "aarch64", "qb/accelerator": "none"}
CPU = {"qb/arch": "x86_64", "qb/accelerator": "none"}
GPU = {"qb/arch": "x86_64", "qb/accelerator": "nvidia-h100", "qb/torch": "2.13.0-cu130"}
NODES = [
    NodeFacts("pi2", 4, PI | {"qb/tflite-runtime": "2.14.0"}),
    NodeFacts("pi1", 3, PI),
    NodeFacts("box", 16, GPU, gpus=1),
    NodeFacts("old", 2, {"ray.io/node-group": "x"}),
]
PAGE = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
PAGE_NODES = [
    NodeFacts("cpu1", 8, CPU),
    NodeFacts("gpu1", 16, GPU | {"qb/accelerator": "nvidia-l4"}, gpus=4),
    NodeFacts("pi1", 4, PI | {"qb/tflite-runtime": "2.14.0"}),
    NodeFacts("pi2", 4, PI | {"qb/tflite-runtime": "2.14.0"}),
]

# The text of a spec is a constant, so it need not be made anew.
MANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def label_sets():
    values = {
        "qb/board": ["none", "rpi5", "5"],
        "qb/arch": ["x86_64", "aarch64"],
        "qb/accelerator": ["none", "h100"],
        "qb/cpu": ["avx2", "neon"],
        "qb/host": ["a", "b"],
        "no": ["1", "2", ""],
        "ray.io/node-id": ["a1", "b2"],
    }
    return st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in values.items()})


def node_lists():
    node = st.builds(
        NodeFacts,
        st.sampled_from([f"n{number}" for number in range(8)]),
        st.integers(0, 9),
        label_sets(),
        st.integers(0, 3),
    )
    lists = st.lists(node, min_size=1, max_size=8, unique_by=lambda node: node.name)
    return lists.filter(lambda nodes: any(node.cores for node in nodes))


def named(line):
    return re.search(r"# ([^:]+)", line)[1].split(", ")


@given(node_lists())
@MANY
def test_an_entry_fits_exactly_the_nodes_that_it_names(load, spec_text, nodes):
    text = as_spec(nodes)
    entries = [line for line in text.splitlines() if line.startswith("  - ")]
    devices = load(f"{spec_text}{text}\n").devices
    for entry, device in zip(entries, devices, strict=True):
        fitting = {node.name for node in nodes if not unmet([device], [node])}
        assert fitting == set(named(entry)), entry
        # Whoever lowers the threads is to have the same nodes.
        lowered = replace(device, threads=1)
        assert fitting == {node.name for node in nodes if not unmet([lowered], [node])}, entry


@given(node_lists())
@MANY
def test_every_node_is_named_once_and_one_that_no_entry_is_for_is_told_why(nodes):
    entries, comments = [], []
    for line in as_spec(nodes).splitlines()[1:]:
        (entries if line.startswith("  - ") else comments).append(line)
    names = [name for line in [*entries, *comments] for name in named(line)]
    assert sorted(names) == sorted(node.name for node in nodes)
    told = {name: line for line in comments for name in named(line)}
    for node in nodes:
        if node.name in told and node.cores:
            assert "others have all of these labels" in told[node.name]
            lasting = {k: v for k, v in node.labels.items() if v and k != "ray.io/node-id"}
            assert any(
                lasting.items() <= other.labels.items() and (other.gpus or not node.gpus)
                for other in nodes
                if other is not node and other.cores
            )


@given(node_lists())
@MANY
def test_every_gpu_of_a_kind_can_have_a_worker(nodes):
    for line in as_spec(nodes).splitlines():
        if line.startswith("  - "):
            members = [node for node in nodes if node.name in named(line)]
            threads = max(1, min(node.cores // (node.gpus or 1) for node in members))
            assert f"threads: {threads}}}" in line
            asks = " gpus: 1," in line or " accelerator: " in line
            assert {asks} == {node.gpus > 0 for node in members}


def test_nodes_are_listed_by_name_with_what_they_are():
    heads, *lines = as_table(NODES).splitlines()
    assert heads.split() == ["host", "cores", "board", "arch", "gpus", "accelerator", "runtimes"]
    assert [line.split() for line in lines] == [
        ["box", "16", "-", "x86_64", "1", "nvidia-h100", "torch=2.13.0-cu130"],
        ["old", "2", "-", "-", "0", "-", "-"],
        ["pi1", "3", "rpi5", "aarch64", "0", "none", "-"],
        ["pi2", "4", "rpi5", "aarch64", "0", "none", "tflite-runtime=2.14.0"],
    ]


def test_the_words_for_a_spec_are_taken_by_one_and_every_device_is_served(load, spec_text):
    text = as_spec(NODES)
    assert text.splitlines()[1:] == [
        '  - {name: "x", labels: {ray.io/node-group: "x"}, threads: 2}  # old',
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


@pytest.mark.parametrize(
    ("nodes", "entry"),
    [
        (
            [NodeFacts("cpu1", 8, CPU), NodeFacts("box", 16, GPU, 1)],
            '{name: "x86_64", labels: {qb/arch: "x86_64", qb/accelerator: "none"}, threads: 8}',
        ),
        (
            [
                NodeFacts("cpu1", 8, CPU | {"qb/board": "none"}),
                NodeFacts("box", 16, GPU | {"qb/board": "dell"}, 1),
                NodeFacts("pc", 4, CPU | {"qb/board": "dell"}),
            ],
            '{name: "x86_64", labels: {qb/arch: "x86_64", qb/board: "none"}, threads: 8}',
        ),
        (
            [
                NodeFacts("cpu1", 8, CPU | {"rack": "5", "qb/host": "cpu1", "qb/python": "3.11"}),
                NodeFacts("pc", 4, CPU | {"qb/board": "dell", "rack": "6"}),
            ],
            '{name: "x86_64", labels: {qb/arch: "x86_64", "rack": "5"}, threads: 8}',
        ),
        (
            [NodeFacts("cpu1", 8, CPU), NodeFacts("pc", 4, CPU, 2)],
            None,
        ),
    ],
)
def test_labels_are_added_only_where_they_keep_other_nodes_out(nodes, entry):
    lines = [line for line in as_spec(nodes).splitlines() if line.endswith("# cpu1")]
    assert lines == ([] if entry is None else [f"  - {entry}  # cpu1"])


def test_gpus_without_the_name_of_their_kind_are_asked_for_by_number():
    assert as_spec([NodeFacts("cpu1", 8, CPU), NodeFacts("pc", 4, CPU, 2)]).splitlines()[1:] == [
        '  - {name: "x86_64", gpus: 1, labels: {qb/arch: "x86_64"}, threads: 2}  # pc',
        ("  # cpu1: others have all of these labels too; add one of its own in node.toml there"),
    ]


def test_a_kind_that_nothing_in_common_tells_from_others_is_split():
    alike = [NodeFacts(name, 2, CPU | {"qb/host": name}) for name in ("a", "b")]
    other = NodeFacts("c", 2, CPU | {"qb/host": "c", "qb/board": "dell"})
    lines = as_spec([*alike, other]).splitlines()[1:]
    assert [named(line) for line in lines] == [["a"], ["b"], ["c"]]
    assert 'labels: {qb/arch: "x86_64", qb/host: "b"}' in lines[1]
    assert [named(line) for line in as_spec(alike).splitlines()[1:]] == [["a", "b"]]


def test_the_id_that_ray_gives_a_node_until_it_restarts_is_in_no_spec():
    nodes = [NodeFacts("n", 1, {"ray.io/node-id": "a1"}), NodeFacts("box", 2, GPU, 1)]
    assert "node-id" not in as_spec(nodes)
    assert as_spec(nodes[:1]) == "devices:\n  - {name: cpu, threads: 1}  # n"


def test_kinds_that_would_have_one_name_are_numbered(load, spec_text):
    nodes = [NodeFacts(arch, 1, {"qb/board": "vm", "qb/arch": arch}) for arch in ("a", "b")]
    spec = load(f"{spec_text}{as_spec(nodes)}\n")
    assert [device.name for device in spec.devices] == ["vm", "vm-2"]


def test_values_that_look_like_numbers_stay_text(load, spec_text):
    spec = load(f"{spec_text}{as_spec([NodeFacts('n', 1, {'qb/board': '5'})])}\n")
    assert spec.devices[0].labels == (("qb/board", "5"),)


def test_as_json_nothing_is_left_out():
    first = as_json(NODES)[0]
    assert first == {"host": "box", "cores": 16, "gpus": 1, "labels": GPU}
    assert set(first) == {field.name for field in fields(NodeFacts)} - {"name"} | {"host"}


def test_the_command_tells_the_gpus_of_this_machine(monkeypatch):
    gpus = tuple(Accelerator(i, "NVIDIA L4", 24 << 30, "570", "8.9", f"GPU-{i}") for i in (0, 1))
    own = replace(self_description.describe_this_node(), cores=8, gpus=gpus, labels=GPU)
    monkeypatch.setattr(self_description, "describe_this_node", lambda: own)
    told = CliRunner().invoke(cli, ["devices", "--json"])
    assert json.loads(told.stdout)["gpus"] == 2
    assert "threads: 4}" in CliRunner().invoke(cli, ["devices"]).stdout


def test_the_command_tells_the_gpus_of_a_cluster(monkeypatch):
    class Cluster:
        def __init__(self, *arguments, **options):
            pass

        def nodes(self):
            return {"a1": ray_cluster.Node("a1", "box", 16, ("box", 1), GPU, 4)}

        def close(self):
            pass

    monkeypatch.setattr(ray_cluster, "RayCluster", Cluster)
    told = CliRunner().invoke(cli, ["devices", "--address", "box:6379", "--json"])
    assert json.loads(told.stdout) == {"host": "box", "cores": 16, "gpus": 4, "labels": GPU}


def test_the_page_shows_what_the_command_prints():
    assert f"{as_table(PAGE_NODES)}\n\n{as_spec(PAGE_NODES)}\n```" in PAGE
