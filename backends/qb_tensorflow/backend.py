"""The TensorFlow backend as the runner sees it."""

from dataclasses import replace
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
from qb_tensorflow import support

_TFLITE = "tflite"
_TWO_RUNTIMES = "float runs in TensorFlow, this in LiteRT: a gain in latency is both's"


class TensorFlowBackend:
    """Keras models and SavedModels: float by TensorFlow itself, quantized by TFLiteConverter.

    So float and quantized run in two runtimes, as they do for whoever deploys a Keras model: what
    a latency gains is the quantization's and LiteRT's together, and every native artifact says so.
    On small models it is LiteRT's: a call of TensorFlow alone costs some 200 µs.

    ====================  ====================================================================
    native                how
    ====================  ====================================================================
    dynamic w8a8          dynamic-range quantization
    static w8a8           full-integer quantization
    static w8a16          ``int16x8``
    fp16                  weights in half precision
    ====================  ====================================================================

    Every scheme with any 2–16 bits can be simulated on Keras models.
    """

    name: ClassVar[str] = "tensorflow"
    requires: ClassVar[tuple[str, ...]] = ("tensorflow", "ai_edge_litert")
    distributions: ClassVar[tuple[str, ...]] = ("tensorflow", "keras", "ai-edge-litert")
    takes: ClassVar[tuple[str, ...]] = ("keras", "saved_model")
    home: tuple[str, ...] = ("keras", "saved_model")
    reference_slack_db = 6.0  # as qb_tflite, whose runtime it is

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, and with what caveat; imports no framework."""
        return support.support(quantization)

    def refuses(self, kind: str, quantization: Quantization) -> str:
        """Tell why a model file of a kind cannot be quantized so, though others can."""
        return support.refusal_of_kind(kind, quantization)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:  # noqa: ARG002 nothing is traced
        """Store the float model: a ``.keras`` archive, or a SavedModel's folder in a zip.

        Args:
            model: gives a Keras model, the path of a ``.keras`` file, or of a SavedModel.
            example: not looked at.

        Raises:
            PlugInError: it is something else, or damaged.
            UnsupportedError: it holds code, such as a Lambda layer.
        """
        from qb_tensorflow.source import pack

        return pack(model)

    def quantize(
        self,
        model: LoadModel,  # noqa: ARG002  the contract's: this backend starts from the archive
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize the float artifact; the model itself is never loaded.

        Raises:
            UnsupportedError: the converter cannot do this to this model, or it is a SavedModel
                to be simulated.
        """
        if quantization.execution == "simulated":
            from qb_tensorflow import simulated

            return simulated.quantize(baseline, quantization, calibration)
        from qb_litert.facts import quantized_facts
        from qb_tensorflow import converter

        data = converter.quantize(baseline, quantization, calibration)
        scope = support.support(quantization).scope
        facts = quantized_facts(data, baseline.facts.parameters, scope)
        return Artifact(data, _TFLITE, replace(facts, notes=(*facts.notes, _TWO_RUNTIMES)))

    def open(
        self,
        artifact: Artifact,
        model: LoadModel,  # noqa: ARG002  the contract's: an artifact holds its code
        threads: int,
    ) -> Executable:
        """Open a float or simulated model in TensorFlow, or a ``.tflite`` in LiteRT.

        Raises:
            PlugInError: the artifact is damaged.
            UnsupportedError: LiteRT lacks kernels for it, or TensorFlow has started with fewer
                threads.
        """
        if artifact.format == _TFLITE:
            return _open_tflite(artifact.data, threads)
        from qb_tensorflow import float_run
        from qb_tensorflow.framework import use_threads

        use_threads(threads)
        return float_run.executable(artifact)

    def reference(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Open a ``.tflite`` with the plain kernels that define the format.

        Raises:
            UnsupportedError: it is none, or LiteRT lacks kernels for it.
        """
        del model
        if artifact.format != _TFLITE:
            raise UnsupportedError("models of TensorFlow have no other arithmetic")
        return _open_tflite(artifact.data, threads, reference_kernels=True)


def _open_tflite(data: bytes, threads: int, *, reference_kernels: bool = False) -> Executable:
    from qb_litert.quiet import quiet
    from qb_litert.runtime import TFLiteExecutable
    from qb_tensorflow.feeding import in_order

    try:
        with quiet():
            executable = TFLiteExecutable(data, threads, reference_kernels=reference_kernels)
    except (NotImplementedError, RuntimeError) as error:
        raise UnsupportedError(f"LiteRT cannot run this file: {error}") from error
    return lambda inputs: in_order(executable(inputs))
