"""A backend over NumPy layers, right or with a fault, to see what the self-check says of it."""

from dataclasses import dataclass

import numpy as np

from qb_cluster.contracts import Artifact, ArtifactFacts, Support
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    symmetric_qparams,
)
from qb_cluster.quantization.weights import quantize_dequantize_weights

FLOAT = ArtifactFacts(1, 4, 0)
INTEGER = ArtifactFacts(1, 1, 1)


def linear(*, weight, bias):
    return np.array(weight, np.float32), np.array(bias, np.float32)


conv = linear


def _convolved(inputs, weight):
    windows = np.lib.stride_tricks.sliding_window_view(inputs, weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)


@dataclass
class NumpyBackend:
    fault: str = ""
    name: str = "numpy"
    requires: tuple[str, ...] = ("numpy",)
    takes: tuple[str, ...] = ("object",)

    def support(self, quantization):
        return Support(quantization.execution == "native", "a caveat")

    def convert(self, model, example):
        if self.fault == "convert":
            raise RuntimeError("no converter today")
        return Artifact(b"", "npy", FLOAT)

    def quantize(self, model, baseline, quantization, calibration):
        if self.fault == "quantize" and quantization.scheme.name == "static":
            raise RuntimeError("no quantizer today")
        self.quantization, self.calibration = quantization, calibration
        return Artifact(b"q", "npy", FLOAT if self.fault == "not applied" else INTEGER)

    def open(self, artifact, model, threads):
        weight, bias = model()
        return lambda inputs: {"output": self._outputs(artifact, weight, bias, inputs["input"])}

    def _outputs(self, artifact, weight, bias, inputs):
        if artifact.data and self.fault != "not applied":
            weight, inputs = self._rounded(weight, inputs)
        if self.fault == "float" and not artifact.data:
            weight = weight * 1.001
        if weight.ndim == 2:
            return inputs @ weight.T + bias
        return _convolved(inputs, weight) + bias[:, None, None]

    def _rounded(self, weight, inputs):
        scheme, bits = self.quantization.scheme, self.quantization.bits
        weight = quantize_dequantize_weights(weight, scheme, bits)
        if self.fault == "kernel":
            weight[0] = -weight[0]
        if bits.activation is None:
            return weight, inputs
        if scheme.number != "integer":
            return weight, quantize_dequantize_weights(inputs, scheme, bits)
        if self.calibration is not None:
            return weight, self._activations(inputs, self.calibration["input"])
        return weight, np.stack([self._activations(each, each) for each in inputs])

    def _activations(self, values, seen):
        scheme, bits = self.quantization.scheme, self.quantization.bits.activation
        qparams = symmetric_qparams if scheme.symmetric_activations else affine_qparams
        ends = float(seen.min()), float(seen.max())
        return quantize_dequantize_affine(values, *qparams(*ends, bits), bits)


def right():
    return NumpyBackend()


def absent():
    return NumpyBackend(requires=("numpy", "no_such_framework"))


def of_another_kind():
    return NumpyBackend(takes=("pt2",))


def without_oracle():
    return NumpyBackend(takes=("tflite",))


def wrong_float():
    return NumpyBackend("float")


def wrong_kernel():
    return NumpyBackend("kernel")


def not_applied():
    return NumpyBackend("not applied")


def broken_converter():
    return NumpyBackend("convert")


def broken_quantizer():
    return NumpyBackend("quantize")


def broken():
    raise RuntimeError("no backend today")
