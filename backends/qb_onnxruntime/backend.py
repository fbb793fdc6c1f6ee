"""The backend object: light to import, each framework loaded by the method that needs it."""

from pathlib import Path

from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import (
    Arrays,
    Artifact,
    Executable,
    LayerSensitivity,
    LoadModel,
    Quantization,
    Support,
)
from qb_cluster.contracts.coverage import LayerKind
from qb_onnxruntime import storage, support

ACCURACY_LEVELS = tuple(support.ARITHMETIC)


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU.

    Every scheme with any 2–16 bits can be simulated, by float operators that round in the graph.

    Args:
        accuracy_level: arithmetic of weight-only linear layers. 1 computes in float32, as the
            scheme says. 4 rounds activations to int8 inside the kernel: up to a hundred times
            faster at 2 and 8 bits, for which this runtime has no float32 kernel.

    Raises:
        ValueError: an option has another value.
    """

    name = "onnxruntime"
    requires: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime")
    distributions: tuple[str, ...] = ("onnxruntime", "onnx", "onnxscript", "torch")
    takes: tuple[str, ...] = ("torch", "onnx")
    home: tuple[str, ...] = ("onnx",)
    simulates: tuple[str, ...] = ("onnx",)
    handles = support.HANDLES

    def __init__(self, accuracy_level: int = 1) -> None:
        if accuracy_level not in ACCURACY_LEVELS:
            raise ValueError(f"accuracy_level is one of {ACCURACY_LEVELS}, not {accuracy_level}")
        self.accuracy_level = accuracy_level

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, without importing the framework."""
        return support.support(quantization, self.accuracy_level)

    def stored_bytes(
        self, kind: LayerKind, shape: tuple[int, ...], quantization: Quantization
    ) -> float | None:
        """Tell what a weight takes natively, without importing the framework."""
        return storage.stored_bytes(kind, shape, quantization)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Export a torch module with a batch of any size, or take a float ``.onnx`` file.

        Raises:
            PlugInError: the model is neither, or the file cannot be read or fed with examples.
            UnsupportedError: it cannot be exported, is too large for one ONNX file, is
                quantized already, or takes batches of a fixed size other than 1.
        """
        from qb_onnxruntime.facts import float_facts

        source = model()
        if model_kind(source) == "onnx":
            from qb_onnxruntime.source import from_file

            data = from_file(Path(source), example)
        else:
            from qb_onnxruntime.export import export

            data = export(source, example)
        return Artifact(data, "onnx", float_facts(data))

    def quantize(
        self,
        model: LoadModel,
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize the float ONNX model; the torch model is never loaded.

        Raises:
            UnsupportedError: it turns out only now that this cannot be done to this model.
            PlugInError: the scheme's ``layers`` name none of the model's, or its own weight
                quantizer returns something else than weights.
            NonFiniteError: weights or calibration activations hold NaN or infinity.
            DataError: there are no calibration examples.
        """
        del model
        if quantization.execution == "simulated":
            from qb_onnxruntime.facts import simulated_facts
            from qb_onnxruntime.simulated import simulate

            simulation = simulate(baseline.data, quantization, calibration)
            data = simulation.quantized(simulation.weights)
            facts = simulated_facts(baseline, quantization, simulation.weights, simulation.left)
            return Artifact(data, "onnx", facts)
        from qb_onnxruntime.facts import quantized_facts
        from qb_onnxruntime.quantize import quantize

        data = quantize(
            baseline.data, quantization, calibration, accuracy_level=self.accuracy_level
        )
        facts = quantized_facts(data, baseline, quantization)
        return Artifact(data, "onnx", facts)

    def reference(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run by reference arithmetic; see ``contracts.Backend``.

        Raises:
            CellError: the runtime cannot read the artifact.
        """
        del model
        from qb_onnxruntime.reference import open_reference

        return open_reference(artifact.data, threads)

    def open(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run; needs onnxruntime and NumPy alone.

        Raises:
            CellError: the runtime cannot read the artifact.
        """
        del model
        from qb_onnxruntime.runtime import Session

        return Session(artifact.data, threads)

    def layer_sensitivity(
        self,
        model: LoadModel,
        quantization: Quantization,
        calibration: Arrays | None,
        inputs: Arrays,
    ) -> list[LayerSensitivity]:
        """Measure what quantizing each layer alone, and each but one, does to the outputs.

        See ``qb_onnxruntime.sensitivity.layer_sensitivity``.
        """
        from qb_onnxruntime.sensitivity import layer_sensitivity

        baseline = self.convert(model, {name: array[:1] for name, array in inputs.items()})
        return layer_sensitivity(baseline.data, quantization, calibration, inputs)
