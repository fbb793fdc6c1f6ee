"""The nets of ``qb_models`` that are trained here, and their datasets."""

import numpy as np
import pytest
import torch

from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.catalog.digits import digits
from qb_cluster.evaluation.metrics import accuracy
from qb_models import docstrings, sequence_nets, two_digits, unet, vit, word_bag
from qb_models.metrics import mask_iou

pytestmark = pytest.mark.frameworks

NETS = {
    "lstm": (sequence_nets.lstm, docstrings.next_symbol, 0.35),
    "gru": (sequence_nets.gru, docstrings.next_symbol, 0.35),
    "causal_transformer": (sequence_nets.causal_transformer, docstrings.next_symbol, 0.35),
    "word_bag": (word_bag.word_bag, docstrings.words, 0.5),
    "vit": (vit.linears, digits, 0.85),
    "adder": (two_digits.adder, two_digits.pairs, 0.75),
    "unet": (unet.unet, unet.ink, 0.8),
}
"""What makes each net (from the user's cache, once trained), its dataset, what it must reach."""

SMALL = {
    "lstm": {"epochs": 1, "width": 8},
    "gru": {"epochs": 1, "width": 8},
    "causal_transformer": {"epochs": 1, "width": 8},
    "word_bag": {"epochs": 1, "width": 8},
    "vit": {"epochs": 1, "width": 8},
    "adder": {"epochs": 1, "width": 4},
    "unet": {"epochs": 1, "width": 2},
}


@pytest.fixture(params=sorted(NETS))
def name(request):
    return request.param


def outputs_of(net, inputs):
    with torch.no_grad():
        if isinstance(inputs, dict):
            return net(**{key: torch.from_numpy(array) for key, array in inputs.items()})
        return net(torch.from_numpy(np.ascontiguousarray(inputs)))


def test_each_is_far_above_what_a_constant_answer_gets(name):
    build, dataset, floor = NETS[name]
    data = dataset()
    outputs, targets = outputs_of(build(), data["inputs"]), data["targets"]
    if name == "unet":
        value = mask_iou(outputs.numpy(), targets).mean()
        constant = targets.mean(axis=(1, 2)).mean()  # all of it ink
    else:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        value = accuracy(first.numpy(), targets).mean()
        constant = np.bincount(targets).max() / len(targets)
    assert value >= floor > 2 * constant


@pytest.mark.parametrize(
    "dataset", [docstrings.next_symbol, docstrings.words, two_digits.pairs, unet.ink]
)
def test_each_dataset_keeps_what_it_calibrates_with_out_of_what_it_judges(dataset):
    raw = dataset()
    assert {"ids", "calibration"} <= raw.keys()
    with_ids = as_dataset(raw, "mine")
    assert len(with_ids.calibration_ids) >= 64
    without = {key: value for key, value in raw.items() if key != "ids"}
    calibration = {"inputs": raw["calibration"]["inputs"]}
    as_dataset({**without, "calibration": calibration}, "mine")  # nor is their content the same


def test_each_is_trained_to_the_same_weights_anywhere(name, tmp_path, monkeypatch):
    def train(cache):
        monkeypatch.setenv("QB_CACHE", str(tmp_path / cache))
        return NETS[name][0](**SMALL[name])

    first, second = train("one").state_dict(), train("two").state_dict()
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


def test_a_vit_written_three_ways_is_one_function():
    images = digits()["inputs"][:64]
    linears, fused, multihead = (
        outputs_of(build(), images) for build in (vit.linears, vit.fused, vit.multihead)
    )
    assert linears.abs().max() > 1
    torch.testing.assert_close(fused, linears, rtol=0, atol=1e-5)
    torch.testing.assert_close(multihead, linears, rtol=0, atol=1e-5)


def test_the_three_ways_differ_in_what_they_are_built_of():
    example = (torch.zeros(1, 1, 8, 8),)

    def operators(build):
        graph = torch.export.export(build(), example).graph
        return {str(node.target) for node in graph.nodes}

    fused = "aten.scaled_dot_product_attention.default"
    assert fused not in operators(vit.linears)
    assert fused in operators(vit.fused)
    modules = [type(module) for module in vit.multihead().modules()]
    assert modules.count(torch.nn.MultiheadAttention) == vit.DEPTH


def test_the_adder_also_tells_which_digit_is_larger():
    data = two_digits.pairs()
    total, order = outputs_of(two_digits.adder(), data["inputs"])
    assert total.shape == (512, 19)
    values = digits()["targets"]
    left, right = two_digits._drawn(len(values), 512, seed=0)
    assert np.array_equal(values[left] + values[right], data["targets"])
    larger = (values[left] > values[right]).astype(np.int64)
    assert accuracy(order.numpy(), larger).mean() >= 0.85


def test_a_causal_transformer_scores_a_position_by_what_came_before_it():
    net = sequence_nets.causal_transformer()
    symbols = torch.from_numpy(docstrings.next_symbol()["inputs"][:4].copy())
    other = symbols.clone()
    other[:, 20:] = 0
    net.train()  # where it gives every position
    with torch.no_grad():
        first, second = net(symbols), net(other)
    torch.testing.assert_close(first[..., :20], second[..., :20])
    assert not torch.allclose(first[..., 20:], second[..., 20:])
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(symbols), first[..., -1])


def test_a_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(docstrings.PlugInError, match=r"no source file .* whole standard library"):
        docstrings._first_sentences("asyncio")
