"""The TFLite backend as the runner sees it."""

from typing import ClassVar

from qb_cluster.contracts import (
    Arrays,
    Artifact,
    Executable,
    LoadModel,
    Quantization,
    Support,
)
from qb_cluster.errors import UnsupportedError
from qb_litert.quiet import quiet
from qb_tflite.support import native_support

_FORMAT = "tflite"


class TFLiteBackend:
    """Torch models as ``.tflite`` files, at batch 1: larger batches do not convert."""

    name: ClassVar[str] = "tflite"
    requires: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")
    distributions: ClassVar[tuple[str, ...]] = (
        "litert-torch",
        "ai-edge-quantizer",
        "ai-edge-litert",
        "tflite-runtime",
    )
    takes: ClassVar[tuple[str, ...]] = ("torch",)

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, and with what caveat; imports no framework."""
        return native_support(quantization)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Convert a ``torch.nn.Module`` to a float ``.tflite``.

        Args:
            model: gives the module.
            example: one example (axis 0 has length 1). A lone input called ``input`` is passed
                by position, any others by keyword.

        Raises:
            PlugInError: the model is no ``torch.nn.Module``.
        """
        from qb_litert.facts import float_facts
        from qb_tflite.convert import convert

        data = convert(model(), example)
        return Artifact(data, _FORMAT, float_facts(data))

    def quantize(
        self,
        model: LoadModel,  # noqa: ARG002  the contract's: this backend starts from the file
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize the float ``.tflite``; the model itself is never loaded."""
        from qb_litert.facts import quantized_facts
        from qb_tflite.quantize import quantize

        data = quantize(baseline.data, quantization, calibration)
        return Artifact(data, _FORMAT, quantized_facts(data, baseline.facts.parameters))

    def open(
        self,
        artifact: Artifact,
        model: LoadModel,  # noqa: ARG002  the contract's: a .tflite holds its code
        threads: int,
    ) -> Executable:
        """Load a ``.tflite`` into ai-edge-litert, or tflite-runtime where only that is installed.

        Raises:
            UnsupportedError: the runtime found here is known to run this file wrongly.
            ValueError: the file is cut off, or not of the kind that ``convert`` makes.
        """
        from qb_litert.runtime import TFLiteExecutable

        try:
            with quiet():
                return TFLiteExecutable(artifact.data, threads)
        except NotImplementedError as error:
            raise UnsupportedError(str(error)) from error
