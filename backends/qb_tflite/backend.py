"""The TFLite backend as the runner sees it."""

from typing import ClassVar

from qb_cluster.causes import cause
from qb_cluster.contracts import (
    Arrays,
    Artifact,
    Executable,
    LayerSensitivity,
    LoadModel,
    Quantization,
    Support,
)
from qb_cluster.contracts.coverage import Handlings, LayerKind
from qb_cluster.errors import UnsupportedError
from qb_litert.quiet import quiet
from qb_tflite import storage
from qb_tflite.support import HANDLES, SCOPE, native_support, simulated_support

_FORMAT = "tflite"


class TFLiteBackend:
    """Torch models and ``.tflite`` files, at batch 1: larger batches do not convert.

    Simulated schemes, of any bit-width, are computed by float operators in the file itself.

    Args:
        allow_known_broken: run, with a caveat, what LiteRT's kernels are known to return garbage
            for: dynamic 2-bit weights, and dynamic per-tensor depthwise convolutions.
    """

    name: ClassVar[str] = "tflite"
    requires: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")
    distributions: ClassVar[tuple[str, ...]] = (
        "litert-torch",
        "ai-edge-quantizer",
        "ai-edge-litert",
        "tflite-runtime",
    )
    takes: ClassVar[tuple[str, ...]] = ("torch", "tflite")
    simulates: ClassVar[tuple[str, ...]] = ("tflite",)
    home: ClassVar[tuple[str, ...]] = ("tflite",)
    # Fast kernels round sums unlike the reference ones, whose dynamic ranges are symmetric.
    reference_slack_db: ClassVar[float] = 6.0
    handles: ClassVar[Handlings] = HANDLES
    board_runtime: ClassVar[str] = "qb_litert.runtime"

    def __init__(self, *, allow_known_broken: bool = False) -> None:
        self._allow_known_broken = allow_known_broken

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, and with what caveat; imports no framework."""
        if quantization.execution == "simulated":
            return simulated_support(quantization)
        return native_support(quantization, allow_known_broken=self._allow_known_broken)

    def stored_bytes(
        self, kind: LayerKind, shape: tuple[int, ...], quantization: Quantization
    ) -> float | None:
        """Tell what a weight takes natively, without importing the framework."""
        return storage.stored_bytes(kind, shape, quantization)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Convert a ``torch.nn.Module`` to a float ``.tflite``, or take one as it is.

        Args:
            model: gives the module, or the path of a ``.tflite``.
            example: one example (axis 0 has length 1). A lone input called ``input`` is passed
                by position, any others by keyword.

        Raises:
            PlugInError: the model is neither, fails on the example, or its file is damaged.
            UnsupportedError: it cannot be converted, or the file is quantized already.
            NonFiniteError: the module's weights are NaN or infinite.
        """
        from qb_litert.facts import float_facts
        from qb_tflite.convert import convert

        data = convert(model(), example)
        return Artifact(data, _FORMAT, float_facts(data))

    def quantize(
        self,
        model: LoadModel,
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize the float ``.tflite``; simulated, to a float one that rounds.

        Args:
            model: loaded only where the scheme has layers, for their names.
            baseline: what ``convert`` gave.
            quantization: what ``support`` said yes to.
            calibration: given exactly when the scheme's activations are static.

        Raises:
            UnsupportedError: ai-edge-quantizer cannot do this to this model.
            NonFiniteError: weights are NaN or infinite, or calibration makes the model NaN.
            DataError: there are no calibration examples.
            PlugInError: one of the scheme's layer patterns matches nothing.
        """
        from qb_litert.facts import quantized_facts
        from qb_tflite.quantize import quantize

        if quantization.execution == "simulated":
            return self._simulate(model, baseline, quantization, calibration)
        made = quantize(
            baseline.data,
            model,
            quantization,
            calibration,
            allow_known_broken=self._allow_known_broken,
        )
        facts = quantized_facts(
            made.data,
            baseline.facts.parameters,
            quantization.scheme.scope_or(SCOPE),
            kept_float=made.kept_float,
        )
        return Artifact(made.data, _FORMAT, facts)

    def _simulate(
        self,
        model: LoadModel,
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        from qb_litert.facts import simulated_facts
        from qb_tflite.simulated import simulate, write

        simulation = simulate(baseline.data, model, quantization, calibration)
        left = simulation.left_out() if quantization.bits.activation else 0
        facts = simulated_facts(
            simulation.data,
            {layer.weights: layer.operation for layer in simulation.layers},
            quantization.scheme.scope_or(SCOPE),
            (f"inputs of {left} layers stay float: they are in a branch or loop",) if left else (),
        )
        return Artifact(write(simulation), _FORMAT, facts)

    def open(
        self,
        artifact: Artifact,
        model: LoadModel,  # noqa: ARG002  the contract's: a .tflite holds its code
        threads: int,
    ) -> Executable:
        """Load a ``.tflite`` into ai-edge-litert, or tflite-runtime where only that is installed.

        Raises:
            UnsupportedError: the runtime found here lacks a kernel for this file, or is known to
                run it wrongly.
            ValueError: the file is cut off, or not of the kind that ``convert`` makes.
        """
        return self._opened(artifact, threads, reference_kernels=False)

    def reference(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Load a ``.tflite`` with the plain kernels that define the format. Raises as ``open``."""
        del model
        return self._opened(artifact, threads, reference_kernels=True)

    @staticmethod
    def _opened(artifact: Artifact, threads: int, *, reference_kernels: bool) -> Executable:
        from qb_litert.runtime import TFLiteExecutable

        try:
            with quiet():
                return TFLiteExecutable(artifact.data, threads, reference_kernels=reference_kernels)
        except NotImplementedError as error:
            raise UnsupportedError(str(error)) from error
        except RuntimeError as error:
            raise UnsupportedError(
                f"the TFLite runtime cannot run this file ({cause(error)}); use another scheme, or "
                "leave tflite out of the backends of this model"
            ) from error

    def layer_sensitivity(
        self,
        model: LoadModel,
        quantization: Quantization,
        calibration: Arrays | None,
        inputs: Arrays,
    ) -> list[LayerSensitivity]:
        """Measure what quantizing one layer, or all but one, does to the outputs.

        See ``qb_tflite.sensitivity.layer_sensitivity``.
        """
        from qb_tflite.sensitivity import layer_sensitivity

        return layer_sensitivity(model, quantization, calibration, inputs)
