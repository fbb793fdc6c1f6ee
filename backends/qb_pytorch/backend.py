"""The backend itself. Importing this module, and asking for support, imports no torch."""

from qb_cluster.contracts import (
    Arrays,
    Artifact,
    Executable,
    LoadModel,
    Quantization,
    Support,
)

LINEAR_ONLY = "torchao quantizes Linear layers only: convolution weights stay float"
NATIVE = {
    ("none", "w8"): LINEAR_ONLY,
    ("dynamic", "w8a8"): f"{LINEAR_ONLY}; activation ranges are one per row, not per example",
    ("static", "w8a8"): "",
}
"""Native kernels by (activations, bits), with what a user of each must know."""


class PyTorchBackend:
    """PyTorch on the CPU, in eager mode.

    Eager and not ``torch.compile``, because compiling needs a C++ compiler that a newcomer's
    machine may lack, takes longer than small nets repay, and would time float and quantized
    models under different optimizers. So torchao's kernels, which are written to be compiled,
    may well be slower than float here; that is a true statement about eager PyTorch.

    ====================  ====================================================================
    native                how
    ====================  ====================================================================
    weight_only w8        ``torchao`` ``Int8WeightOnlyConfig``
    dynamic w8a8          ``torchao`` ``Int8DynamicActivationInt8WeightConfig``
    static w8a8           PT2E with ``X86InductorQuantizer``, lowered to oneDNN int8 kernels
    ====================  ====================================================================

    Every scheme with any 2–16 bits can be simulated.
    """

    name = "pytorch"
    requires = ("torch", "torchao")
    distributions = ("torch", "torchao")
    takes = ("torch",)

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, without importing torch."""
        if quantization.execution == "simulated":
            return Support(supported=True)
        scheme, bits = quantization.scheme, quantization.bits
        caveat = NATIVE.get((scheme.activations, str(bits)))
        if scheme.weight_quantizer is not None:
            refusal = f"'{scheme.name}' brings weight arithmetic of its own, which no kernel has"
        elif caveat is None:
            kernels = "weight-only w8" if scheme.activations == "none" else "w8a8"
            refusal = f"the CPU kernels of PyTorch and torchao compute {kernels}, not {bits}"
        elif scheme.activations == "static" and scheme.granularity == "per_tensor":
            refusal = "PT2E's X86InductorQuantizer takes per-channel weights only"
        else:
            return Support(supported=True, reason=caveat)
        return Support(supported=False, reason=refusal)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:  # noqa: ARG002 nothing is traced
        """Store the float model's state, as the baseline.

        Raises:
            PlugInError: the model is no ``torch.nn.Module``.
        """
        from qb_pytorch import checkpoint, modules

        module = modules.own_copy(model)
        return checkpoint.store(module, modules.parameter_count(module))

    def quantize(
        self,
        model: LoadModel,
        baseline: Artifact,  # noqa: ARG002 the float model itself is at hand
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize a copy of the float model.

        Raises:
            PlugInError: the model is no ``torch.nn.Module``, or a weight quantizer of the
                user's own returns something else than weights.
            UnsupportedError: static and native, and PT2E cannot trace or quantize the model,
                or this CPU has no kernels for it.
        """
        from qb_pytorch import modules

        module = modules.own_copy(model)
        if quantization.execution == "simulated":
            from qb_pytorch import simulated

            return simulated.quantize(module, quantization, calibration)
        if calibration is None:
            from qb_pytorch import torchao_int8

            return torchao_int8.quantize(module, quantization)
        from qb_pytorch import pt2e

        return pt2e.quantize(module, calibration)

    def open(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run; sets the number of threads of this process."""
        import torch

        from qb_pytorch import checkpoint, modules, pt2e

        torch.set_num_threads(threads)
        if artifact.format == pt2e.FORMAT:
            return pt2e.open_program(artifact)
        return checkpoint.restore(artifact, modules.own_copy(model))
