import subprocess
import sys

import numpy as np
import pytest
from old_runtime import python_with_tflite_runtime
from ssh_server import wait_until

from qb_cluster.contracts import Bits, Quantization, Scheme


@pytest.fixture(scope="session")
def old_python():
    return python_with_tflite_runtime()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The board's folder; a test that leaves something in it fails."""
    folder = tmp_path / "board"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    wait_until(lambda: not list(folder.iterdir()))


@pytest.fixture(scope="session")
def inputs():
    return {"input": np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}


@pytest.fixture(scope="session")
def artifacts(inputs):
    """A float file and the int8 file made of it."""
    import torch

    from qb_tflite import TFLiteBackend

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    backend = TFLiteBackend()
    baseline = backend.convert(lambda: net, {"input": inputs["input"][:1]})
    static = Quantization(Scheme("static", "static"), Bits(8, 8), "native")
    return baseline, backend.quantize(lambda: net, baseline, static, inputs)


@pytest.fixture
def bare_python(tmp_path):
    """Python in an environment of its own, with nothing in it, and where packages go."""
    environment = tmp_path / "bare"
    command = [sys.executable, "-m", "venv", "--without-pip", environment]
    subprocess.run(command, check=True)
    return environment / "bin" / "python", next(environment.glob("lib/python3*/site-packages"))
