"""Quantization schemes: what is quantized, how finely, and by which arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts.bits import Bits

Activations = Literal["none", "dynamic", "static"]
Execution = Literal["native", "simulated"]
Granularity = Literal["per_tensor", "per_channel"]
WeightQuantizer = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A scheme without its bit-widths.

    Attributes:
        name: what reports call it.
        activations: ``none`` leaves activations float (the scheme takes ``wN``); ``dynamic``
            finds each example's range while running; ``static`` fixes ranges on calibration
            data beforehand (both take ``wNaM``).
        granularity: one weight scale per tensor, or one per output channel.
        weight_quantizer: arithmetic of the user's own: takes float32 weights of any shape
            (output channels on axis 0) and a bit-width, returns the dequantized float32
            weights of the same shape. Such a scheme can only be simulated. ``None`` means
            symmetric uniform quantization, scale = max|w| / (2^(bits-1) - 1).
    """

    name: str
    activations: Activations = "none"
    granularity: Granularity = "per_channel"
    weight_quantizer: WeightQuantizer | None = None

    def takes(self, bits: Bits) -> bool:
        """Tell whether the bit-width has this scheme's form."""
        return (bits.activation is None) == (self.activations == "none")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a backend is asked to do to a float model."""

    scheme: Scheme
    bits: Bits
    execution: Execution
