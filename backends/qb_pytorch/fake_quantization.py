"""Quantizing and dequantizing the inputs of layers in float: simulated activations."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qb_cluster.contracts import Arrays
from qb_pytorch import modules

LAYERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
CALIBRATION_BATCH = 64

PreHook = Callable[[torch.nn.Module, tuple[Any, ...]], tuple[Any, ...]]


def layers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Give the layers whose inputs are quantized: linear and convolutions, by name.

    ``torch.nn.MultiheadAttention`` reads the weights of its output projection without calling
    it, so that one is left out.
    """
    uncalled = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS) and not isinstance(layer, uncalled)
    }


def input_ranges(module: torch.nn.Module, examples: Arrays) -> dict[str, tuple[float, float]]:
    """Run examples and give the smallest and largest input of each layer that was called.

    Args:
        module: a float model; it keeps the observers, so pass a copy.
        examples: inputs by name, examples along axis 0.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def observer(name: str) -> PreHook:
        def observe(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            low, high = (float(end) for end in args[0].aminmax())
            seen = ranges.get(name, (low, high))
            ranges[name] = (min(low, seen[0]), max(high, seen[1]))
            return args

        return observe

    for name, layer in layers(module).items():
        layer.register_forward_pre_hook(observer(name))
    with torch.no_grad():
        for batch in batches(modules.tensors(examples), CALIBRATION_BATCH):
            modules.call(module, batch)
    return ranges


def batches(inputs: Mapping[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Cut tensors into batches of at most ``size`` examples, in order."""
    parts = {name: tensor.split(size) for name, tensor in inputs.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]


def attach(module: torch.nn.Module, activations: Mapping[str, Any]) -> None:
    """Make layers round their inputs to the 2^bits levels of an affine quantizer.

    Args:
        module: changed in place.
        activations: plain values, as an artifact stores them: ``bits``; ``layers``, a mapping
            from the layer's name to its static ``(scale, zero_point)``, or to ``None`` where
            each example's own range is used.
    """
    bits = activations["bits"]
    for name, qparams in activations["layers"].items():
        if qparams is None:
            hook = _dynamic(bits)
        else:
            scale, zero_point = qparams
            hook = _static(scale, zero_point, bits)
        module.get_submodule(name).register_forward_pre_hook(hook)


def _static(scale: float, zero_point: int, bits: int) -> PreHook:
    def fake_quantize(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rounded = torch.fake_quantize_per_tensor_affine(args[0], scale, zero_point, 0, 2**bits - 1)
        return (rounded, *args[1:])

    return fake_quantize


def _dynamic(bits: int) -> PreHook:
    def fake_quantize(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fake_quantize_each(args[0], bits), *args[1:])

    return fake_quantize


def fake_quantize_each(examples: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each example to the levels of its own range, widened to hold zero.

    The same affine quantizer as ``qb_cluster.quantization.affine.affine_qparams``, for all
    examples at once.

    Args:
        examples: float, examples along axis 0.
        bits: 2–16.

    Returns:
        The shape and dtype of ``examples``.
    """
    levels = 2**bits - 1
    low, high = examples.reshape(len(examples), -1).to(torch.float32).aminmax(dim=1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / levels
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    zero_point = (-low / scale).round().clamp(0, levels).to(torch.int32)
    return torch.fake_quantize_per_channel_affine(examples, scale, zero_point, 0, 0, levels)
