"""The backend object: light to import, each framework loaded by the method that needs it."""

from qb_cluster.contracts import (
    Arrays,
    Artifact,
    Executable,
    LoadModel,
    Quantization,
    Support,
)
from qb_onnxruntime import support

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = tuple(support.ARITHMETIC)


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU.

    Args:
        block_size: weights that share a scale in a weight-only linear layer: 16, 32, 64, 128
            or 256 along its inputs.
        accuracy_level: arithmetic of weight-only linear layers. 1 computes in float32, as the
            scheme says. 4 rounds activations to int8 inside the kernel: up to a hundred times
            faster at 2 and 8 bits, for which this runtime has no float32 kernel.

    Raises:
        ValueError: an option has another value.
    """

    name = "onnxruntime"
    requires: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnxruntime")
    distributions: tuple[str, ...] = ("onnxruntime", "onnx", "onnxscript", "torch")
    takes: tuple[str, ...] = ("torch",)

    def __init__(self, block_size: int = 32, accuracy_level: int = 1) -> None:
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size is one of {BLOCK_SIZES}, not {block_size}")
        if accuracy_level not in ACCURACY_LEVELS:
            raise ValueError(f"accuracy_level is one of {ACCURACY_LEVELS}, not {accuracy_level}")
        self.block_size = block_size
        self.accuracy_level = accuracy_level

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, without importing the framework."""
        return support.support(quantization, self.block_size, self.accuracy_level)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Export to ONNX with a dynamic batch.

        Raises:
            PlugInError: the model is not a ``torch.nn.Module``.
            UnsupportedError: it cannot be exported, or is too large for one ONNX file.
        """
        from qb_onnxruntime.export import export
        from qb_onnxruntime.facts import float_facts

        data = export(model(), example)
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
        """
        del model
        from qb_onnxruntime.facts import quantized_facts
        from qb_onnxruntime.quantize import quantize

        data = quantize(
            baseline.data,
            quantization,
            calibration,
            block_size=self.block_size,
            accuracy_level=self.accuracy_level,
        )
        facts = quantized_facts(data, baseline, quantization.bits.weight)
        return Artifact(data, "onnx", facts)

    def open(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run; needs onnxruntime and NumPy alone.

        Raises:
            CellError: the runtime cannot read the artifact.
        """
        del model
        from qb_onnxruntime.runtime import Session

        return Session(artifact.data, threads)
