"""The backend itself. Importing this module, and asking for support, imports no torch."""

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
from qb_cluster.errors import UnsupportedError
from qb_pytorch import storage, support


class PyTorchBackend:
    """PyTorch on the CPU, in eager mode; ``on_gpu`` gives the same for a GPU.

    Eager and not ``torch.compile``, because compiling needs a C++ compiler that a newcomer's
    machine may lack, takes longer than small nets repay, and would time float and quantized
    models under different optimizers. So torchao's kernels, which are written to be compiled,
    may well be slower than float here; that is a true statement about eager PyTorch.

    =====================  ==================================================================
    native                 how
    =====================  ==================================================================
    weight_only w2 … w8    integers in torchao's tensors; w4 and less of Linear layers stored
                           two to a byte; computes in float
    dynamic w2a8 … w8a8    torchao's ``Int8Tensor``: Linear layers, in ``torch._int_mm``
    static w2a8 … w8a8     PT2E with ``X86InductorQuantizer``, lowered to oneDNN int8 kernels
    fp16, bf16             the module in that dtype, float32 in and out
    fp8                    torchao's ``Float8Tensor``: Linear layers; computes in float
    =====================  ==================================================================

    Every scheme with any 2–16 bits can be simulated.

    On a GPU there is no static int8, dynamic int8 is cuBLAS's, and 4 bits are ``tinygemm``'s;
    float32 there is float32, not TF32.

    Args:
        _device: torch's name of where models run; ``on_gpu`` alone gives it.
    """

    name = "pytorch"
    requires = ("torch", "torchao")
    distributions = ("torch", "torchao")
    takes = ("torch", "pt2")
    home = ("torch", "pt2")
    handles = support.HANDLES

    def __init__(self, *, _device: str = support.CPU) -> None:
        self._device = _device

    def on_gpu(self) -> "PyTorchBackend":
        """Give the same backend for the one GPU that this process sees; imports no torch."""
        return PyTorchBackend(_device=support.GPU)

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, without importing torch."""
        return support.support(quantization, self._device)

    def stored_bytes(
        self, kind: LayerKind, shape: tuple[int, ...], quantization: Quantization
    ) -> float | None:
        """Tell what a weight takes natively, without importing the framework."""
        return storage.stored_bytes(kind, shape, quantization)

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Store the float model's state, as the baseline, and count what it multiplies.

        Raises:
            PlugInError: the model is no ``torch.nn.Module`` and no ``.pt2`` file.
            CellError: the file cannot be read without running what is in it.
            UnsupportedError: the file's program takes batches of one size only, or the model
                does not run on the GPU.
            OutOfMemoryError: the GPU's memory does not do.
        """
        from qb_pytorch import checkpoint, cuda, layers, modules

        module = modules.own_copy(model)
        tensors = modules.tensors(example)
        if self._device == support.CPU:
            macs = layers.count_macs(module, tensors)
        else:
            macs = cuda.count_macs(module, tensors)
        return checkpoint.store_float(module, tensors, macs, self._device)

    def quantize(
        self,
        model: LoadModel,
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize a copy of the float model.

        Raises:
            PlugInError: the model is no ``torch.nn.Module`` and no ``.pt2`` file, a pattern of
                the scheme's ``layers`` matches no layer, or a weight quantizer of the user's
                own returns something else than weights.
            NonFiniteError: weights, or activations of calibration, are NaN or infinite.
            UnsupportedError: static and native, and PT2E cannot trace or quantize the model,
                or this CPU has no kernels for it; or the model does not run in 16 bits; or the
                GPU is too old.
            OutOfMemoryError: the GPU's memory does not do.
        """
        from qb_pytorch import modules

        module = modules.own_copy(model)
        if quantization.execution == "simulated":
            from qb_pytorch import simulated

            return simulated.quantize(module, quantization, calibration, self._device)
        if quantization.scheme.number in {"fp16", "bf16"}:
            from qb_pytorch import half

            return half.quantize(module, baseline, quantization, self._device)
        if calibration is None:
            from qb_pytorch import torchao_weights

            return torchao_weights.quantize(module, baseline, quantization, self._device)
        from qb_pytorch import pt2e

        return pt2e.quantize(module, baseline, quantization, calibration)

    def open(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run; sets the number of threads of this process.

        Raises:
            CellError: the artifact is damaged, or holds what would run code when read.
            UnsupportedError: it was made for another device, or this process sees no GPU.
            OutOfMemoryError: the GPU's memory does not do.
        """
        import torch

        from qb_pytorch import checkpoint, cuda, modules, pt2e

        torch.set_num_threads(threads)
        if artifact.format == pt2e.FORMAT:
            if self._device != support.CPU:
                raise UnsupportedError(
                    "the artifact is a program for CPUs; open it on a device without GPUs"
                )
            return pt2e.open_program(artifact)
        module = modules.own_copy(model)
        if self._device != support.CPU:
            module = cuda.place(module)
        return checkpoint.restore(artifact, module, self._device)

    def reference(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run by reference arithmetic; see ``contracts.Backend``.

        Static programs run as they are stored, quantize/dequantize pairs around float kernels;
        torchao's weights are made float before anything multiplies by them.

        Raises:
            UnsupportedError: there is none: for torchao's dynamic ranges and 16-bit floats.
            CellError: the artifact is damaged.
        """
        import torch

        from qb_pytorch import checkpoint, modules, pt2e

        torch.set_num_threads(threads)
        if artifact.format == pt2e.FORMAT:
            return pt2e.open_program(artifact, is_lowered=False)
        if artifact.format != checkpoint.TORCHAO_FORMAT or artifact.facts.scope is not None:
            raise UnsupportedError("only stored weights have reference arithmetic here")
        return checkpoint.restore(artifact, modules.own_copy(model), dequantized=True)

    def layer_sensitivity(
        self,
        model: LoadModel,
        quantization: Quantization,
        calibration: Arrays | None,
        inputs: Arrays,
    ) -> list[LayerSensitivity]:
        """Measure what quantizing each layer alone, and each but one, does to the outputs.

        See ``qb_pytorch.sensitivity.layer_sensitivity``. Runs on the CPU, for GPUs too.
        """
        from qb_pytorch import sensitivity

        return sensitivity.layer_sensitivity(model, quantization, calibration, inputs)
