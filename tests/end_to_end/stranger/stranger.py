"""What somebody outside the project plugs in: a model, a dataset, a scheme, a metric, a backend.

Nothing here is known to qb_cluster; the tests copy this file into a folder of its own and sweep
over it by import path and by entry point. The models are linear classifiers in NumPy, so that
a cell takes milliseconds. What the backend is asked to quantize goes to a log beside this file.
"""

import ctypes
import io
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from qb_cluster.contracts import Artifact, ArtifactFacts, Quantization, Scheme, Support
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    quantize_dequantize_symmetric,
    quantize_symmetric,
)

FEATURES, CLASSES = 8, 4
LOG = Path(__file__).parent / "log.txt"
HOLD = Path(__file__).parent / "hold"
"""While it is there, all wait but the first so many that are quantized as it says."""


class Linear:
    """Scores = x · weightsᵀ."""

    def __init__(self, weights):
        self.weights = weights.astype(np.float32)


def centres():
    return np.random.default_rng(7).standard_normal((CLASSES, FEATURES))


def centroids(scale=1.0):
    """A model: scores are inner products with the class centres."""
    return Linear(centres() * scale)


def raises():
    raise ValueError("the weights file is not there")


def returns_nan():
    return Linear(np.full((CLASSES, FEATURES), np.nan))


def segfaults():
    os.kill(os.getpid(), signal.SIGSEGV)


def loops_forever():
    while True:
        pass


def hangs_in_c():
    ctypes.PyDLL(None).pause()  # holds Python's lock: no thread of this process can do anything


def too_large():
    raise MemoryError


def hungry():
    """Ask for more than there is, here and now; the limit spares the neighbours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, hard))
    try:
        return Linear(np.ones((CLASSES, 2**34)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def calls_exit():
    raise SystemExit(1)


def blobs(count=200, spread=1.5):
    """A dataset: Gaussian blobs around the centres."""
    rng = np.random.default_rng(3)
    targets = rng.integers(0, CLASSES, count)
    inputs = centres()[targets] + spread * rng.standard_normal((count, FEATURES))
    return {"inputs": inputs.astype(np.float32), "targets": targets}


def round_to_powers_of_two(weights, bits):
    exponents = np.rint(np.log2(np.maximum(np.abs(weights), 1e-6)))
    top = exponents.max()
    kept = np.maximum(exponents, top - 2 ** (bits - 1) + 2)
    return (np.sign(weights) * 2.0**kept).astype(np.float32)


def powers_of_two():
    """A scheme with arithmetic of its own."""
    return Scheme("powers_of_two", weight_quantizer=round_to_powers_of_two)


def top_k(outputs, targets, k=2):
    """A metric with an option."""
    best = np.argsort(-outputs, axis=1)[:, :k]
    return (best == targets[:, None]).any(axis=1).astype(float)


def log(word):
    with LOG.open("a") as file:
        file.write(word + "\n")


def is_held():
    try:
        return len(LOG.read_text().splitlines()) > int(HOLD.read_text())
    except FileNotFoundError:
        return False


class NumpyBackend:
    """A runtime: NumPy. Its only native kernel is int8 weights; it simulates the rest."""

    name = "numpy"
    requires = ("numpy",)
    distributions = ("numpy",)
    takes = ("object",)

    def __init__(self, pause_s=0.0, poison=""):
        # By the environment, cells that pause are the very cells that do not.
        self.pause_s = pause_s + float(os.environ.get("STRANGER_PAUSE_S", "0"))
        self.poison = poison

    def support(self, quantization: Quantization) -> Support:
        native = quantization.scheme.name == "weight_only" and quantization.bits.weight in (2, 8)
        if quantization.execution == "simulated" or native:
            return Support(True)
        return Support(False, "the int8 kernel takes weights alone")

    def convert(self, model, example):
        weights = model().weights
        return _artifact({"weights": weights}, weights.size, 0, weights.nbytes)

    def quantize(self, model, baseline, quantization, calibration):
        weights = np.load(io.BytesIO(baseline.data))["weights"]
        bits = quantization.bits
        log(f"{quantization.execution} {quantization.scheme.name} {bits}")
        time.sleep(self.pause_s)
        # Until a test says so, which by the environment changes no cell either.
        while is_held() or not Path(os.environ.get("STRANGER_WAITS_FOR", "/")).exists():
            time.sleep(0.02)
        if str(bits) == self.poison:
            sys.stdout.write(f"about to die of {bits}\n")
            sys.stdout.flush()
            segfaults()
        if quantization.execution == "native":
            if bits.weight == 2:  # a recipe that is accepted and does nothing
                return _artifact({"weights": weights}, weights.size, 0, weights.nbytes)
            integers, scale = quantize_symmetric(weights, bits.weight)
            arrays = {"integers": integers.astype(np.int8), "scale": scale}
            return _artifact(arrays, weights.size, weights.size, weights.size + scale.nbytes)
        rounding = quantization.scheme.weight_quantizer or quantize_dequantize_symmetric
        arrays = {"weights": rounding(weights, bits.weight)}
        if calibration is not None:
            x = calibration["input"]
            arrays["input"] = np.array([*affine_qparams(x.min(), x.max(), bits.activation)])
            arrays["bits"] = np.array(bits.activation)
        return _artifact(arrays, weights.size, weights.size, None)

    def open(self, artifact, model, threads):
        arrays = dict(np.load(io.BytesIO(artifact.data)))
        weights = arrays.get("weights")
        if weights is None:
            weights = arrays["integers"] * arrays["scale"]

        def run(inputs):
            x = inputs["input"]
            if "input" in arrays:
                scale, zero_point = arrays["input"]
                x = quantize_dequantize_affine(x, scale, int(zero_point), int(arrays["bits"]))
            return {"scores": (x @ weights.T).astype(np.float32)}

        return run


class GpuBackend(NumpyBackend):
    """The same, and it says which GPUs it sees when it converts for one or for none.

    Where it converts for one, it waits until so many workers have said that they see another.
    """

    def __init__(self, workers=1, where="cpu"):
        super().__init__()
        self.workers = workers
        self.where = where

    def on_gpu(self):
        return GpuBackend(self.workers, "gpu")

    def convert(self, model, example):
        log(f"{self.where} sees '{os.environ.get('CUDA_VISIBLE_DEVICES')}'")
        deadline = time.monotonic() + 30  # then the test fails by what the log says
        while self.where == "gpu" and time.monotonic() < deadline:
            seen = {line for line in LOG.read_text().splitlines() if line.startswith("gpu sees")}
            if len(seen) >= self.workers:
                break
            time.sleep(0.02)
        return super().convert(model, example)


class ApartBackend(NumpyBackend):
    """The same, with a toolchain that only some machines have, and other libraries on each."""

    @property
    def distributions(self):
        return "numpy", f"stranger-of-{os.environ.get('STRANGER_ROLE')}"

    def convert(self, model, example):
        self._toolchain("float")
        return super().convert(model, example)

    def quantize(self, model, baseline, quantization, calibration):
        self._toolchain(f"{quantization.execution} {quantization.bits}")
        return super().quantize(model, baseline, quantization, calibration)

    def open(self, artifact, model, threads):
        log(f"run on {os.environ['STRANGER_ROLE']}")
        return super().open(artifact, model, threads)

    def _toolchain(self, what):
        role = os.environ["STRANGER_ROLE"]
        log(f"{what} made on {role}")
        if role != "converter":
            raise ImportError("no toolchain here")


class WhichPython(NumpyBackend):
    """The same, and it says which interpreter converts."""

    def convert(self, model, example):
        log(f"prepared by {sys.executable}")
        return super().convert(model, example)


class BoardBackend(NumpyBackend):
    """The same, for boards too."""

    board_runtime = "stranger_board"


class WrongOnBoards(NumpyBackend):
    """The same, and boards compute what it makes wrongly."""

    board_runtime = "stranger_wrong_board"


def _artifact(arrays, parameters, quantized, stored):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return Artifact(buffer.getvalue(), "npz", ArtifactFacts(parameters, stored, quantized))
