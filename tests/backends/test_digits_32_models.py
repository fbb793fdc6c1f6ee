"""The two models for ``digits-32``."""

import numpy as np
import pytest
import torch

from qb_cluster.catalog.digits_32 import digits_32
from qb_cluster.contracts import Bits, Quantization
from qb_cluster.quantization.schemes import static
from qb_onnxruntime import OnnxRuntimeBackend
from qb_pytorch import PyTorchBackend, layers
from qb_pytorch import digits_32 as models
from qb_tflite import TFLiteBackend

pytestmark = pytest.mark.frameworks
FACTORIES = {
    "resnet": (models.digits_resnet, 4_903_242),
    "mobilenet": (models.digits_mobilenet, 3_733_674),
}
BACKENDS = (PyTorchBackend, TFLiteBackend, OnnxRuntimeBackend)
SMALL = {"width": 8, "epochs": 1}


@pytest.fixture(scope="module")
def data():
    return digits_32()


@pytest.fixture(scope="module", params=sorted(FACTORIES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    """Give the model as the demo has it, from the user's own cache: training takes 20 s."""
    return FACTORIES[kind][0]()


@pytest.fixture
def small(kind, tmp_path, monkeypatch):
    """Train a narrow one in a cache of its own, anew at every call."""
    caches = iter(range(2))

    def train():
        monkeypatch.setenv("QB_CACHE", str(tmp_path / str(next(caches))))
        return FACTORIES[kind][0](**SMALL)

    return train


def test_it_takes_images_of_32_by_32_and_gives_logits_of_ten_digits(model, data):
    with torch.no_grad():
        logits = model(torch.from_numpy(data["inputs"][:3]))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32
    assert not model.training


def test_it_has_as_many_parameters_as_its_documentation_says(kind, model):
    factory, count = FACTORIES[kind]
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert f"{count:,} parameters" in factory.__doc__


def test_one_example_multiplies_nine_million_times_and_reads_14_megabytes(model, data):
    """So it takes 0.2 ms, also where a core is twice as fast as those it was tried on."""
    example = {"input": torch.from_numpy(data["inputs"][:1])}
    assert layers.count_macs(model, example).total >= 9_000_000
    assert sum(parameter.nbytes for parameter in model.parameters()) >= 14e6


def test_it_reads_most_digits_and_leaves_some_to_lose(model, data):
    with torch.no_grad():
        read = model(torch.from_numpy(data["inputs"])).numpy().argmax(axis=1)
    assert 0.90 <= np.mean(read == data["targets"]) <= 0.99


def test_training_it_twice_gives_the_same_weights(small):
    first, second = small().state_dict(), small().state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_product_runs_in_integers_under_static_w8a8(backend, small, data):
    """Residual sums and folded normalization included."""
    net, backend = small(), backend()
    baseline = backend.convert(lambda: net, {"input": data["inputs"][:1]})
    asked = Quantization(static(), Bits.parse("w8a8"), "native")
    examples = {"input": data["calibration"]["inputs"][:32]}
    facts = backend.quantize(lambda: net, baseline, asked, examples).facts
    assert facts.integer_mac_share == 1
    assert facts.fallback_ops == ()
