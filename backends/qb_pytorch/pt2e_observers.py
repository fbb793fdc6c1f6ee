"""PT2E observers that hand torch the scales of QuantBench's own arithmetic and observers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchao.quantization.pt2e.observer import ObserverBase

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.quantization.observers import Observer
from qb_cluster.quantization.weights import quantize_weights
from qb_pytorch import calibration


class WeightObserver(ObserverBase):
    """Gives the scales of the reference arithmetic, one a channel however the scheme has it."""

    def __init__(self, dtype: torch.dtype, scheme: Scheme, bits: Bits, **specified: Any) -> None:
        super().__init__(dtype)
        self.scheme, self.bits = scheme, bits
        self.qscheme = torch.per_channel_symmetric
        self.ch_axis = 0
        self.quant_min, self.quant_max = specified["quant_min"], specified["quant_max"]
        self._weights: torch.Tensor | None = None

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """Remember the weights; batch normalization is folded into them."""
        self._weights = weights.detach()
        return weights

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Give scales (float32) and zero points (int64), one an output channel."""
        assert self._weights is not None
        integers = quantize_weights(self._weights.numpy(), self.scheme, self.bits)
        channels = len(self._weights)
        scale = np.broadcast_to(integers.scale.reshape(-1), channels).copy()
        return torch.from_numpy(scale), torch.zeros(channels, dtype=torch.int64)


class ActivationObserver(ObserverBase):
    """Gives the scale of what one of QuantBench's observers saw."""

    def __init__(
        self,
        dtype: torch.dtype,
        make: Callable[[int], Observer],
        bits: int,
        symmetric: bool,
        **specified: Any,
    ) -> None:
        super().__init__(dtype)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = specified["quant_min"], specified["quant_max"]
        self._observer, self._bits, self._symmetric = make(bits), bits, symmetric

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Look at a batch, examples along axis 0."""
        self._observer.update(values.detach().to(torch.float32).numpy())
        return values

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Give scale (float32) and zero point (int64), one each."""
        scale, zero_point = calibration.qparams(
            self._observer, self._bits, symmetric=self._symmetric
        )
        return torch.tensor([scale]), torch.tensor([zero_point])
