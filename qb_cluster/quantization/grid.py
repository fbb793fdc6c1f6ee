"""The grid that integer weights lie on: which integers, and the scale of a row of weights.

Sources of the formulas: see ``weights``. Signed scales are those of ggml's Q4_0
(``quantize_row_q4_0_ref``) and of onnxruntime's own quantizer for MatMulNBits.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Scheme
from qb_cluster.quantization.affine import symmetric_limit

Rows = NDArray[np.float32]
"""Weights that share a scale, (rows, weights)."""

_TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers low … high of a symmetric or affine quantizer."""

    kind: Literal["narrow", "full", "signed", "affine"]
    low: int
    high: int

    @classmethod
    def of(cls, scheme: Scheme, bits: int) -> "Grid":
        """Give the grid of an integer scheme's weights."""
        if not scheme.symmetric:
            return cls("affine", 0, 2**bits - 1)
        limit = symmetric_limit(bits)
        if scheme.narrow_range:
            return cls("narrow", -limit, limit)
        signed = scheme.weight_range == "signed_max"
        return cls("signed" if signed else "full", -limit - 1, limit)

    def __str__(self) -> str:
        """Give what people read: ``-8…7, signed scale``."""
        kind = {"signed": ", signed scale", "affine": ", affine"}.get(self.kind, "")
        return f"{self.low}…{self.high}{kind}"

    def qparams(
        self, rows: Rows, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Give scale and zero point, (rows, 1) each, over ``shares`` of the min-max range."""
        lowest = shares * np.minimum(rows.min(axis=1, keepdims=True, initial=0.0), 0.0)
        highest = shares * np.maximum(rows.max(axis=1, keepdims=True, initial=0.0), 0.0)
        match self.kind:
            case "narrow":
                scale = usable(np.maximum(highest, -lowest) / self.high)
            case "full":
                scale = usable(np.maximum(highest / self.high, lowest / self.low))
            case "signed":
                scale = usable(np.where(highest > -lowest, highest, lowest) / self.low)
            case "affine":
                scale = usable((highest - lowest) / self.high)
                zero_point = np.clip(np.rint(-lowest / scale), self.low, self.high)
                return scale, zero_point.astype(np.int32)
        return scale, np.zeros(scale.shape, np.int32)

    def round(
        self, rows: Rows, scale: NDArray[np.float32], zero_point: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Give the nearest integers, as float32, which holds them exactly."""
        nearest = rows / scale
        np.rint(nearest, out=nearest)
        nearest += zero_point.astype(np.float32)
        return np.clip(nearest, self.low, self.high, out=nearest)

    def squared_error(self, rows: Rows, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the squared error of each row, (rows, 1), of weights in ±1."""
        scale, zero_point = self.qparams(rows, shares)
        integers = self.round(rows, scale, zero_point)
        integers -= zero_point.astype(np.float32)
        integers *= scale
        integers -= rows
        # float32 differences of weights in ±1; their sum in float64.
        error: NDArray[np.float64] = np.einsum("ij,ij->i", integers, integers, dtype=np.float64)
        return error[:, None]


def usable(scale: NDArray[Any]) -> NDArray[np.float32]:
    """Give float32 scales that can be divided by: 1 for rows that are all zero or denormal."""
    scale = scale.astype(np.float32)
    return np.where(np.abs(scale) >= _TINY, scale, np.float32(1))
