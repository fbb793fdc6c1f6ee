"""Static activation ranges: what the inputs of layers are on calibration examples."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from qb_cluster.contracts import Arrays, Calibration, Quantization
from qb_cluster.quantization.affine import affine_qparams, symmetric_qparams
from qb_cluster.quantization.observers import Observer, make_observer
from qb_pytorch import fake_quantization, modules
from qb_pytorch.following import Clip

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where activations are rounded.

    Attributes:
        module: name of the submodule.
        bits: so many.
        output_of: the layer whose output the submodule's is; ``None`` for its first input.
        clip: what the activation is cut to first; ``None`` for nothing.
    """

    module: str
    bits: int
    output_of: str | None = None
    clip: Clip | None = None


def qparams_at(
    module: torch.nn.Module,
    examples: Arrays,
    places: Iterable[Place],
    quantization: Quantization,
) -> dict[Place, tuple[float, int]]:
    """Run examples and give scale and zero point at each place that was reached.

    Args:
        module: a float model.
        examples: inputs by name, examples along axis 0.
        places: where to look.
        quantization: names the observer.

    Raises:
        NonFiniteError: an activation is NaN or infinite.
    """
    make = observers(quantization)
    seen: dict[Place, Observer] = {}

    def observe(place: Place, values: torch.Tensor) -> None:
        values = fake_quantization.clipped(values.to(torch.float32), place.clip)
        seen.setdefault(place, make(place.bits)).update(values.numpy())

    def hook(place: Place) -> Any:
        if place.output_of is not None:
            return lambda _, __, output: observe(place, output)
        return lambda _, args: observe(place, args[0])

    handles = []
    for place in places:
        watched = module.get_submodule(place.module)
        register = (
            watched.register_forward_pre_hook
            if place.output_of is None
            else watched.register_forward_hook
        )
        handles.append(register(hook(place)))
    try:
        with torch.no_grad():
            for batch in batches(modules.tensors(examples), BATCH):
                modules.call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    symmetric = quantization.scheme.symmetric_activations
    return {
        place: qparams(observer, place.bits, symmetric=symmetric)
        for place, observer in seen.items()
    }


def batches(inputs: Mapping[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """Cut tensors into batches of at most ``size`` examples, in order."""
    parts = {name: tensor.split(size) for name, tensor in inputs.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]
