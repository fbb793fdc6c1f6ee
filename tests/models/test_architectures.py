"""The architectures of ``sweeps/architectures.yaml``; whoever has torchvision sees them run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qb_cluster.catalog.dataset import as_dataset
from qb_cluster.errors import PlugInError
from qb_cluster.plan import expand
from qb_cluster.spec import load_spec
from qb_models import architectures

pytestmark = pytest.mark.frameworks

SWEEP = Path(__file__).parents[2] / "sweeps" / "architectures.yaml"


@pytest.mark.parametrize(
    ("package", "build"),
    [
        ("torchvision", architectures.resnet18),
        ("torchvision", architectures.vit_b_16),
        ("transformers", architectures.bert),
        ("transformers", architectures.llama),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(
    package, build, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PlugInError, match=rf"{package} is not installed: .*\[architectures\]"):
        build()


@pytest.mark.parametrize(
    ("package", "build", "dataset"),
    [
        ("torchvision", architectures.resnet18, architectures.small_images),
        ("torchvision", architectures.mobilenet_v3_small, architectures.small_images),
        ("transformers", architectures.bert, architectures.sentences),
        ("transformers", architectures.llama, architectures.sentences),
    ],
)
def test_each_is_the_same_net_every_time_and_tells_examples_apart(package, build, dataset):
    pytest.importorskip(package)
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    inputs = as_dataset(dataset(), "random").inputs
    tensors = [torch.from_numpy(array[:4]) for array in inputs.values()]
    with torch.no_grad():
        scores = build()(*tensors).numpy()
    assert np.isfinite(scores).all()
    assert scores.std(axis=0).max() > 0.01  # no constant


def test_every_architecture_has_every_scheme_on_every_backend():
    cells = [cell for cell in expand(load_spec(SWEEP)) if not cell.is_baseline]
    assert len({cell.model.label for cell in cells}) == 5
    assert len(cells) == 5 * 3 * 4
    assert {cell.measure.latency for cell in cells} == {None}
