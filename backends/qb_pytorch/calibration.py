"""Static activation ranges: what the inputs of layers are on calibration examples."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from qb_cluster.contracts import Arrays, Bits, Calibration, Quantization
from qb_cluster.quantization.affine import affine_qparams, symmetric_qparams
from qb_cluster.quantization.observers import Observer, make_observer
from qb_pytorch import modules

BATCH: Final = 64


def observers(quantization: Quantization) -> Callable[[int], Observer]:
    """Give a function that makes this quantization's observer for activations of some bits."""
    calibration = quantization.calibration or Calibration()
    symmetric = quantization.scheme.symmetric_activations
    return lambda bits: make_observer(calibration, bits, symmetric=symmetric)


def qparams(observer: Observer, bits: int, *, symmetric: bool) -> tuple[float, int]:
    """Give scale and zero point, for unsigned integers, of what an observer saw.

    Raises:
        DataError: it saw nothing.
    """
    return (symmetric_qparams if symmetric else affine_qparams)(*observer.range(), bits)


def input_qparams(
    module: torch.nn.Module,
    examples: Arrays,
    layers: Mapping[str, Bits],
    quantization: Quantization,
) -> dict[str, tuple[float, int]]:
    """Run examples and give scale and zero point of the inputs of each layer that was called.

    Args:
        module: a float model.
        examples: inputs by name, examples along axis 0.
        layers: which layers, and their bits.
        quantization: names the observer.

    Raises:
        NonFiniteError: an input is NaN or infinite.
    """
    make = observers(quantization)
    seen: dict[str, Observer] = {}

    def hook(name: str, bits: int) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def observe(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
            seen.setdefault(name, make(bits)).update(args[0].to(torch.float32).numpy())

        return observe

    handles = [
        module.get_submodule(name).register_forward_pre_hook(hook(name, bits.activation))
        for name, bits in layers.items()
        if bits.activation is not None
    ]
    try:
        with torch.no_grad():
            for batch in batches(modules.tensors(examples), BATCH):
                modules.call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    symmetric = quantization.scheme.symmetric_activations
    return {
        name: qparams(observer, layers[name].activation or 0, symmetric=symmetric)
        for name, observer in seen.items()
    }


def batches(inputs: Mapping[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Cut tensors into batches of at most ``size`` examples, in order."""
    parts = {name: tensor.split(size) for name, tensor in inputs.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]
