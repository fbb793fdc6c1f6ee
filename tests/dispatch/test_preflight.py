"""Before anything starts: a device that no node can serve is told, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qb_cluster.contracts import Device, SshBoard
from qb_cluster.dispatch.board_survey import unmet_boards
from qb_cluster.dispatch.preflight import NodeFacts, unmet

NODES = [
    NodeFacts("a", 2, {"qb/board": "jetson", "qb/arch": "aarch64", "ray.io/market-type": "spot"}),
    NodeFacts("b", 4, {"qb/board": "x86", "qb/arch": "x86_64"}),
]


def device(threads=1, **labels):
    return Device("dev", threads, tuple(sorted((f"qb/{k}", v) for k, v in labels.items())))


@pytest.mark.parametrize(
    "served",
    [
        Device(),
        Device("cpu", 4),
        device(board="jetson"),
        device(2, board="jetson", arch="aarch64"),
        Device("spot", 1, (("ray.io/market-type", "spot"),)),
    ],
)
def test_a_device_that_a_node_can_serve_is_no_news(served):
    assert unmet([served], NODES) == []


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            device(board="rpi5"),
            "device 'dev': no node has label qb/board=rpi5; known: qb/board=jetson, qb/board=x86",
        ),
        (
            device(board="jetsno"),
            "device 'dev': no node has label qb/board=jetsno; did you mean qb/board=jetson?",
        ),
        (
            device(bord="jetson"),
            "device 'dev': no node has label qb/bord=jetson; did you mean qb/board?",
        ),
        (
            device(place="attic"),
            (
                "device 'dev': no node has label qb/place=attic; known: qb/arch=aarch64, "
                "qb/arch=x86_64, qb/board=jetson, qb/board=x86"
            ),
        ),
        (
            Device("dev", 1, (("ray.io/market-type", "on-demand"),)),
            (
                "device 'dev': no node has label ray.io/market-type=on-demand; "
                "known: ray.io/market-type=spot"
            ),
        ),
        (
            device(board="jetson", arch="x86_64"),
            (
                "device 'dev': no node has qb/arch=x86_64, qb/board=jetson at once; "
                "'a' lacks qb/arch=x86_64"
            ),
        ),
        (
            Device("cpu", 8),
            (
                "device 'cpu' asks for 8 threads and the largest node has 4 cores; "
                "lower devices: threads"
            ),
        ),
        (
            device(4, board="jetson"),
            (
                "device 'dev' asks for 4 threads and the largest node with qb/board=jetson has "
                "2 cores; lower devices: threads"
            ),
        ),
    ],
)
def test_a_device_that_no_node_can_serve_is_told_and_what_there_is(asked, why):
    assert unmet([Device(), asked, asked], NODES) == [why]


def test_every_such_device_gets_its_sentence():
    assert len(unmet([Device("cpu", 8), Device("cpu", 9), device(board="rpi5")], NODES)) == 2 + 1


def test_a_cluster_without_labels_or_nodes_says_so():
    bare = [NodeFacts("a", 1, {"ray.io/market-type": "spot"})]
    (why,) = unmet([device(board="rpi5")], bare)
    assert why == "device 'dev': no node has label qb/board=rpi5; the nodes have no labels"
    assert unmet([Device("cpu", 2)], bare) == [
        "device 'cpu' asks for 2 threads and the largest node has 1 core; lower devices: threads"
    ]
    assert unmet([Device()], []) == ["device 'cpu': there is no node"]


def test_nodes_that_prepare_for_others_have_to_be_there_too():
    makers = (("qb/board", "x86"),)
    pi = Device("pi", 2, (("qb/board", "jetson"),), prepared_on=makers)
    zero = Device("zero", 9, ssh=SshBoard("zero"), prepared_on=makers)
    assert unmet([pi, zero], NODES) == []
    assert unmet([pi, zero], NODES[:1]) == [
        f"prepared_on of device '{name}': no node has label qb/board=x86; known: qb/board=jetson"
        for name in ("pi", "zero")
    ]


def test_a_long_list_of_labels_is_cut():
    nodes = [NodeFacts(f"n{i}", 1, {"qb/rack": f"{i:04}"}) for i in range(500)]
    (why,) = unmet([device(rack="attic")], nodes)
    assert why.endswith("qb/rack=0011, …")


LABELS = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]), max_size=2)
NODE = st.builds(NodeFacts, st.sampled_from(["a", "b", "c"]), st.integers(1, 4), LABELS)
DEVICE = st.builds(
    Device,
    st.just("dev"),
    st.integers(1, 4),
    LABELS.map(lambda labels: tuple(sorted(labels.items()))),
)


@given(DEVICE, st.lists(NODE, max_size=4))
def test_a_device_is_unmet_exactly_when_no_single_node_has_all_it_asks_for(asked, nodes):
    served = any(
        node.cores >= asked.threads and set(asked.labels) <= set(node.labels.items())
        for node in nodes
    )
    assert (unmet([asked], nodes) == []) == served


def test_a_device_with_a_gpu_needs_a_node_that_has_one():
    with_gpu = Device("gpu", 1, (("qb/board", "jetson"),), gpus=1)
    assert unmet([with_gpu], [*NODES, NodeFacts("box", 8, {"qb/board": "jetson"}, gpus=1)]) == []
    (why,) = unmet([with_gpu], [*NODES, NodeFacts("box", 8, {}, gpus=1)])
    assert why.startswith("device 'gpu' asks for a GPU and no node with qb/board=jetson has one; ")


def test_one_board_with_two_pythons_is_refused_without_a_look_at_it():
    one, other = SshBoard("pi", python="/a"), SshBoard("pi", python="/b")
    devices = [Device("a", ssh=one), Device("b", ssh=other), Device("c", 2, ssh=one)]
    (why,) = unmet_boards(devices, {one: ("m",), other: ("m",)})
    assert why.startswith(
        "devices 'a' and 'b' are one board, 'pi', with two users, keys or Pythons"
    )
