"""Plug-ins for tests of the worker: a model, a dataset and backends that each do one thing."""

import numpy as np

from qb_cluster.contracts import (
    Artifact,
    ArtifactFacts,
    Cell,
    Device,
    Latency,
    LayerSensitivity,
    Measure,
    Ref,
    Support,
)

FLOAT = Cell(
    cell_id="baseline",
    sweep="s",
    model=Ref("m", "worker_stubs:identity"),
    dataset=Ref("d", "worker_stubs:points"),
    backend=Ref("b", "worker_stubs:Stub"),
    device=Device(),
    scheme=None,
    bits=None,
    execution="native",
    reason="",
    calibration=None,
    measure=Measure(latency=Latency(warmup_s=0.001, min_runs=10, min_s=0.001)),
    timeout_s=60,
    baseline_cell_id="baseline",
)
CALLS = []
SHIFT = [0.0]  # what the dataset and the model come with: names may move on


def points(count=60):
    return still_points(count, SHIFT[0])


def still_points(count=60, shift=0.0):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((count, 4)).astype(np.float32) + np.float32(shift)
    return {
        "inputs": inputs,
        "targets": inputs[:, :3].argmax(axis=1),
        "calibration": rng.standard_normal((20, 4)).astype(np.float32),
    }


def identity():
    return "a model"


class Weights:
    def __init__(self, values):
        self.values = values


def shifting():
    return Weights(np.ones(4) + SHIFT[0])


class Stub:
    """Outputs are the inputs plus noise; ``what`` it does wrong is an option."""

    name = "stub"
    requires = ()
    distributions = ()
    takes = ("object",)

    def __init__(self, what="right"):
        self.what = what

    def support(self, quantization):
        return Support(True)

    def convert(self, model, example):
        CALLS.append("convert")
        model()
        return Artifact(b"float".ljust(40), "bin", ArtifactFacts(10, 40, 0))

    def quantize(self, model, baseline, quantization, calibration):
        CALLS.append(f"quantize {quantization.execution}")
        if self.what == "from the model":
            model()
        data = f"{quantization.execution} {quantization.bits}".encode().ljust(40)
        quantized = {"float": 0, "more than all": 11}.get(self.what, 10)
        facts = ArtifactFacts(
            parameters=10,
            parameter_bytes=10,
            quantized_parameters=quantized,
            integer_mac_share=0.5,
            integer_layer_mac_share=0.75,
            fallback_ops=("Gelu",),
        )
        return Artifact(data, "bin", facts)

    def open(self, artifact, model, threads):
        is_native = artifact.data.startswith(b"native")

        def run(inputs):
            x = inputs["input"]
            if len(x) == 1 and self.what == f"{'' if is_native else 'float '}zeros when timed":
                return {"y": np.zeros_like(x)}
            if artifact.data.startswith(b"float") or (is_native and self.what == "identical"):
                return {"y": x}
            if is_native and self.what == "garbage":
                return {"y": np.roll(x, 1, axis=1)}
            if is_native and self.what == "nan":
                return {"y": np.full_like(x, np.nan)}
            return {"y": x + np.float32(0.01) * np.sin(100 * x) * (2 if is_native else 1)}

        return run

    def layer_sensitivity(self, model, quantization, calibration, inputs):
        assert len(inputs["input"]) == 20
        return [LayerSensitivity("fc", 10, 10, "only", str(quantization.bits), 30.0, 31.0, 32.0)]


class TorchOnly(Stub):
    name = "torch-only"
    takes = ("torch",)


class OfItsFormat(Stub):
    name = "of-its-format"
    takes = ("torch", "object")
    simulates = ("object",)
