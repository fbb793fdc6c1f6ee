import os
import subprocess
import sys

import pytest

from qb_cluster.catalog.content import model_digest
from qb_cluster.catalog.insides import of_tensor, size_bytes

pytestmark = pytest.mark.frameworks

TORCH = """
import torch
from qb_cluster.catalog.content import model_digest
class Net(torch.nn.Sequential):
    pass
torch.manual_seed(0)
net = Net(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
net.activation = torch.nn.functional.relu
net.tags = {"a", "b", "c"}
print(model_digest(net, torch.nn.Linear))
"""


def test_a_torch_model_has_one_digest_in_every_process():
    def digest(hash_seed):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        return subprocess.check_output([sys.executable, "-c", TORCH], env=environment)

    assert digest("0") == digest("1")


@pytest.fixture
def net():
    import torch

    def net(change=lambda made: None, dtype=torch.float32):
        torch.manual_seed(0)
        made = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten()
        )
        made.register_buffer("mask", torch.ones(2), persistent=False)
        made.alpha = 0.5
        made.eval().to(dtype)
        change(made)
        return made

    return net


def digest(model):
    return model_digest(model, digest)


def test_a_torch_model_loaded_again_is_the_same(net):
    assert digest(net()) == digest(net())


def test_every_part_of_a_torch_model_counts(net):
    import torch

    changes = {
        "a weight": lambda made: made[0].weight.data[0, 0, 0].add_(1e-6),
        "a statistic": lambda made: made[1].running_mean.add_(1e-6),
        "a buffer that is not in the state": lambda made: made.mask.mul_(2),
        "an attribute": lambda made: setattr(made, "alpha", 0.25),
        "a setting": lambda made: setattr(made[1], "eps", 1e-3),
        "the mode": lambda made: made.train(),
        "a hook": lambda made: made.register_forward_hook(torch.relu),
    }
    digests = {what: digest(net(change)) for what, change in changes.items()}
    digests["nothing"] = digest(net())
    digests["the dtype"] = digest(net(dtype=torch.bfloat16))
    assert len(set(digests.values())) == len(digests)


def test_traced_models_count_by_their_code_and_their_weights(net):
    import torch

    def traced(change=lambda made: None):
        return digest(torch.fx.symbolic_trace(net(change)))

    def exported(change=lambda made: None):
        return digest(torch.export.export(net(change), (torch.zeros(2, 1, 3, 3),)).module())

    def change(made):
        made[0].weight.data.add_(1)

    for way in (traced, exported):
        assert way() == way() != way(change)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_a_tensor_is_read_where_it_lies(dtype):
    import torch

    tensor = torch.ones(4, 4).to(getattr(torch, dtype))
    *_, data = of_tensor(tensor)
    assert data.ctypes.data == tensor.data_ptr()
    assert size_bytes(torch.nn.Linear(8, 8)) == 4 * (8 * 8 + 8)


def test_a_keras_model_is_the_same_however_many_were_made_before_it():
    import keras

    def made(units=3, weight=1.0, name=None, activation="relu"):
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(units, activation=activation, name=name)(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
        for variable in model.weights:
            variable.assign(variable.numpy() * 0 + weight)
        return model

    first = made()
    assert digest(made()) == digest(first)
    assert size_bytes(first) >= 4 * first.count_params()
    others = [made(units=5), made(weight=2.0), made(name="hidden"), made(activation="tanh")]
    assert len({digest(model) for model in (first, *others)}) == 5


def test_onnx_weights_beside_the_file_count(tmp_path):
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    def written(value):
        weights = numpy_helper.from_array(np.full((64, 64), value, np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 64])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 64])],
            [weights],
        )
        path = tmp_path / "model.onnx"
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save(
            helper.make_model(graph), path, save_as_external_data=True, location="weights.bin"
        )
        return path.read_bytes(), digest(path)

    (bytes_1, digest_1), (bytes_2, digest_2) = written(1), written(2)
    assert bytes_1 == bytes_2
    assert digest_1 != digest_2
