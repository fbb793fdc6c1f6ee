"""How far quantized outputs are from float ones. One unit each, over all outputs at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Deviation:
    """Distance of quantized outputs from float outputs.

    Attributes:
        sqnr_db: signal to quantization-noise ratio, 10·log10(Σx² / Σ(x-y)²), in dB; infinite
            for equal outputs.
        cosine: Σxy / √(Σx² Σy²); NaN when one side is all zero.
        max_abs_error: max |x-y|, in the unit of the output.
        top1_agreement: share of examples with the same largest output; ``None`` where outputs
            are no class scores of shape (n, classes ≥ 2).
    """

    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1_agreement: float | None


def top1(outputs: NDArray[Any]) -> NDArray[np.int64] | None:
    """Give the index of each example's largest output; ``None`` where there are no classes."""
    is_scores = outputs.ndim == 2 and outputs.shape[1] >= 2
    return np.argmax(outputs, axis=1).astype(np.int64) if is_scores else None


def deviation(reference: NDArray[Any], outputs: NDArray[Any]) -> Deviation:
    """Compare quantized outputs with float ones.

    Args:
        reference: float model's outputs, n examples along axis 0.
        outputs: quantized model's, the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != outputs.shape:
        raise ValueError(
            f"float outputs have shape {reference.shape}, quantized ones {outputs.shape}"
        )
    x = reference.astype(np.float64).ravel()
    y = outputs.astype(np.float64).ravel()
    error = x - y
    signal, noise, other = float(x @ x), float(error @ error), float(y @ y)
    with np.errstate(divide="ignore", invalid="ignore"):
        sqnr_db = float(10 * np.log10(np.float64(signal) / noise))
        cosine = float(np.float64(x @ y) / np.sqrt(signal * other))
    one, two = top1(reference), top1(outputs)
    agreement = None if one is None or two is None else float(np.mean(one == two))
    return Deviation(sqnr_db, cosine, float(np.max(np.abs(error), initial=0.0)), agreement)
