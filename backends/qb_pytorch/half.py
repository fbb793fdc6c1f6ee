"""Native 16-bit floats: the whole module in half precision or bfloat16, float32 in and out.

What a CPU has decides the speed. On an EPYC with AVX512-BF16 and without AVX512-FP16, one thread,
a net of ResNet-18's size on one image of 64×64 took 17 ms in float32, 8 in bfloat16 and 98 in half
precision, whose convolutions have no kernel there.
"""

import torch

from qb_cluster.causes import cause
from qb_cluster.contracts import Artifact, Quantization
from qb_cluster.errors import UnsupportedError
from qb_pytorch import checkpoint, cuda, layers, modules
from qb_pytorch.simulated import TORCH_NAMES


def quantize(
    module: torch.nn.Module,
    baseline: Artifact,
    quantization: Quantization,
    device: str = cuda.CPU,
) -> Artifact:
    """Cast every parameter and buffer, and make sure that the model still runs.

    Args:
        module: a copy of the float model, changed in place.
        baseline: knows the shapes of an example.
        quantization: ``fp16`` or ``bf16``.
        device: where it will run, and is tried.

    Raises:
        UnsupportedError: the model makes float32 tensors of its own while running, or calls
            an operation that the device lacks in this format.
        OutOfMemoryError: the device's memory does not do.
    """
    name = TORCH_NAMES[quantization.scheme.number]
    dtype = getattr(torch, name)
    parameters = modules.parameter_count(module)
    module.to(device, dtype)
    try:
        with torch.no_grad(), cuda.memory_errors():
            example = modules.cast(checkpoint.example(baseline), dtype)
            modules.call(module, {key: tensor.to(device) for key, tensor in example.items()})
    except RuntimeError as error:
        raise UnsupportedError(
            f"the model does not run in {name} ({cause(error)}); make its forward follow its "
            "inputs' dtype, or write execution: simulated"
        ) from error
    module.cpu()
    done = {name for name, parameter in module.named_parameters() if parameter.dtype == dtype}
    content = checkpoint.Content(dtype=name, device=device)
    artifact = checkpoint.store(module, parameters, done, content)
    covered = layers.coverage_of(module, quantization, done)
    return layers.with_facts(artifact, 0.0, 0.0, (), covered)
